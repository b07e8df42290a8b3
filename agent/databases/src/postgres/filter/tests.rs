//! The filter against ordinary, foreign and hostile dumps.

use super::*;

fn filtered(major: u32, dump: &str, step: usize) -> Result<String, Fault> {
    let mut filter = Filter::new(major, "UTF8");
    let mut out = Vec::new();
    for piece in dump.as_bytes().chunks(step) {
        out.extend(filter.feed(piece)?);
    }
    out.extend(filter.finish()?);
    Ok(String::from_utf8(out).expect("text"))
}

/// Whatever the pieces, the outcome is the same.
fn each_way(major: u32, dump: &str) -> Result<String, Fault> {
    let whole = filtered(major, dump, dump.len().max(1));
    for step in [1, 2, 3, 5, 17] {
        assert_eq!(filtered(major, dump, step), whole, "in pieces of {step}: {dump}");
    }
    whole
}

#[test]
fn ordinary_statements_and_rows_pass() {
    let dump = "--\n-- a dump; it's one\n--\nSET client_encoding = 'UTF8';\n\
        SELECT pg_catalog.set_config('search_path', '', false);\n\
        CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $_$SELECT '\\! x'; $1 \\ $_$;\n\
        COMMENT ON TABLE \"a;\\b\" IS E'it\\'s \\\\ ;';\n\
        SELECT /* a /* nested \\! */ comment ; \\! */ 'a\\', 1.5e3, (a)[1:2]::text;\n\
        CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2);\n\
        COPY public.t (a, b) FROM stdin;\n1\t\\N\n\\\\.\n\\.x\n\\! no order\n\\.\n\n\
        CREATE FUNCTION g() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END;\n\
        SELECT 1;\n";
    assert_eq!(each_way(15, dump).expect("passes"), dump.trim_end());
}

#[test]
fn orders_to_the_client_are_refused() {
    for hostile in [
        "\\! touch x\n",
        "SELECT 1 \\! touch x\n;",
        "SELECT 1\\gexec\n",
        "\\copy t from '/etc/passwd'\n",
        "\\restrict a b\n",
        "SELECT 1 \\restrict a\n;",
        "\\restrict a\\!\n",
        "SELECT e'\\' \\! touch x\n';\n\\! touch x\n",
        "SELECT 'a\\' \\! touch x\n;",
        "SELECT $a$ $a$ \\! touch x\n;",
        "SELECT a$b$ \\! touch x\n$b$;",
        "SELECT $1$ \\! touch x\n$1$;",
        // What opens a dollar quote closes none: psql would be outside quotes where a filter is within.
        "SELECT $a$a$ ' $a$ \\! touch x\n';",
        "SELECT $$$ ' $$ \\! touch x\n';",
        "SET SESSION=AUTHORIZATION=x;",
        "CREATE  SCHEMA x;",
        "SELECT \"a\\\" \\! touch x\n;",
        "-- comment\n\\! touch x\n",
        "/* */ \\! touch x\n",
        "COPY t FROM stdin;\n1\n\\.\n\\! touch x\n",
        "COPY t FROM stdin; \\! touch x\n1\n\\.\n",
        "COPY t FROM stdin WITH (FORMAT csv);\n1\n\\.\n",
        "/* */ COPY t FROM stdin;\n'\n\\.\n\\! touch x\n",
        "SELECT E'a'\n'\\' ' \\! touch x\n';",
        "SELECT E'a' -- comment\n'\\' ' \\! touch x\n';",
        "SELECT $1$a$ \\! touch x\n$a$;",
        "SELECT 1begin;",
        "SELECT :VERSION;",
        "SELECT (; COPY t FROM stdin;\n\\! touch x\n\\.\n",
        // psql is still within the function when a filter that split at ; would see rows.
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; COPY t FROM stdin;\n\\! touch x\n\\.\nEND;\n",
        "SET standard_conforming_strings = off;\n",
        "SET client_encoding = 'SJIS';\n",
        "SELECT 1; \\",
    ] {
        assert!(each_way(15, hostile).is_err(), "{hostile}");
    }
}

#[test]
fn truncated_dumps_are_noticed() {
    for cut in ["SELECT 1", "SELECT 'a;", "COPY t FROM stdin;\n1\n", "SELECT $$ ;", "/* ;"] {
        assert!(each_way(15, cut).is_err(), "{cut}");
    }
    each_way(15, "SELECT 1; -- end").expect("a comment may be last");
}

#[test]
fn newer_dumps_are_made_fit_for_older_servers() {
    let dump = "\\restrict aB3\n\nSET transaction_timeout = 0;\nSET unknown_thing = 1;\n\
        GRANT SELECT,MAINTAIN,INSERT ON TABLE public.t TO x;\nGRANT MAINTAIN ON TABLE public.t TO y;\n\
        GRANT ALL ON SCHEMA public TO z;\nCREATE SCHEMA extra;\nCREATE EXTENSION IF NOT EXISTS citext;\n\
        COMMENT ON EXTENSION citext IS 'x;y';\nSET SESSION AUTHORIZATION \"Odd\";\nRESET SESSION AUTHORIZATION;\n\
        ALTER TABLE ONLY public.t ALTER COLUMN a SET COMPRESSION pglz;\nSELECT 1;\n\\unrestrict aB3\n\n";
    let old = "\nGRANT SELECT,INSERT ON TABLE public.t TO x;\nCREATE SCHEMA IF NOT EXISTS extra;\
        \nSET ROLE \"Odd\";\nRESET ROLE;\nSELECT 1;";
    assert_eq!(each_way(13, dump).expect("passes"), old);
    let new = each_way(17, dump).expect("passes");
    assert!(new.contains("transaction_timeout") && new.contains("SELECT,MAINTAIN,INSERT"));
    assert!(!new.contains("unknown_thing") && new.contains("SET COMPRESSION"));
}

#[test]
fn default_privileges_lose_what_older_servers_do_not_know() {
    let dump = "ALTER DEFAULT PRIVILEGES FOR ROLE shop IN SCHEMA public GRANT SELECT,MAINTAIN ON TABLES TO reader;\n\
        ALTER DEFAULT PRIVILEGES FOR ROLE \"a GRANT b\" IN SCHEMA \" REVOKE \"\"\" GRANT MAINTAIN,UPDATE ON TABLES TO \"x ON y\" WITH GRANT OPTION;\n\
        ALTER DEFAULT PRIVILEGES FOR ROLE shop GRANT MAINTAIN ON TABLES TO reader;\n\
        ALTER DEFAULT PRIVILEGES FOR ROLE shop REVOKE GRANT OPTION FOR MAINTAIN,SELECT ON TABLES FROM shop;\n\
        ALTER DEFAULT PRIVILEGES FOR ROLE shop REVOKE ALL ON TABLES FROM shop;\n\
        ALTER DEFAULT PRIVILEGES FOR ROLE shop GRANT ALL ON TABLES TO \"MAINTAIN\";\n";
    let old = "\nALTER DEFAULT PRIVILEGES FOR ROLE shop IN SCHEMA public GRANT SELECT ON TABLES TO reader;\
        \nALTER DEFAULT PRIVILEGES FOR ROLE \"a GRANT b\" IN SCHEMA \" REVOKE \"\"\" GRANT UPDATE ON TABLES TO \"x ON y\" WITH GRANT OPTION;\
        \nALTER DEFAULT PRIVILEGES FOR ROLE shop REVOKE GRANT OPTION FOR SELECT ON TABLES FROM shop;\
        \nALTER DEFAULT PRIVILEGES FOR ROLE shop REVOKE ALL ON TABLES FROM shop;\
        \nALTER DEFAULT PRIVILEGES FOR ROLE shop GRANT ALL ON TABLES TO \"MAINTAIN\";";
    assert_eq!(each_way(15, dump).expect("passes"), old);
    assert_eq!(each_way(17, dump).expect("passes"), dump.trim_end());
}

#[test]
fn a_line_of_many_statements_is_read_in_a_moment() {
    let began = std::time::Instant::now();
    let dump = ";".repeat(1 << 19);
    assert_eq!(filtered(15, &dump, dump.len()).map(|passed| passed.len()), Ok(dump.len()));
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
}
