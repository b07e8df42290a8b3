//! The catalogue queries of a manifest. Each yields object, fact and value; a fact whose name
//! begins with `~` is a text that releases write differently, with `^` an expression. Names are qualified by the server,
//! since the session's search path holds nothing of the account's.

/// A query.
pub(super) struct Query {
    /// The kind of its objects.
    pub(super) kind: &'static str,
    /// The release that brought what it reads.
    pub(super) since: u32,
    pub(super) sql: &'static str,
}

const fn of(kind: &'static str, sql: &'static str) -> Query {
    Query { kind, since: 0, sql }
}

/// The tables whose rows are compared: schema, name, columns.
pub(super) const TABLES: &str = "SELECT n.nspname, c.relname, coalesce((SELECT string_agg('t.' || quote_ident(a.attname), ', ' ORDER BY a.attnum) \
     FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'), '') \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' \
     AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT EXISTS (SELECT 1 FROM pg_depend e \
     WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e') ORDER BY 1, 2";

/// The sequences: schema, name, definition.
pub(super) const SEQUENCES: &str = "SELECT n.nspname, c.relname, concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, \
     s.seqmin, s.seqmax, s.seqcache, s.seqcycle) FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid \
     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname !~ '^pg_' ORDER BY 1, 2";

/// Everything else.
pub(super) const QUERIES: &[Query] = &[
    of(
        "schema",
        "SELECT n.nspname, 'owner', CASE WHEN n.nspname = 'public' AND (r.rolsuper OR r.rolname = 'pg_database_owner' \
        OR r.oid = (SELECT datdba FROM pg_database WHERE datname = current_database())) THEN '(server)' ELSE r.rolname END \
        FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
    ),
    of(
        "schema",
        "SELECT n.nspname, 'rights of ' || coalesce(r.rolname, 'everybody'), string_agg(a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END, ' ' ORDER BY a.privilege_type) \
        FROM pg_namespace n CROSS JOIN LATERAL aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a \
        LEFT JOIN pg_roles r ON r.oid = a.grantee WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
        AND a.grantee <> n.nspowner AND NOT coalesce(r.rolsuper, false) AND NOT (n.nspname = 'public' AND \
        (r.rolname = 'pg_database_owner' OR r.oid = (SELECT datdba FROM pg_database WHERE datname = current_database()))) GROUP BY 1, 2",
    ),
    of(
        "relation",
        "SELECT n.nspname || '.' || c.relname, f.fact, f.value FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        JOIN pg_roles r ON r.oid = c.relowner CROSS JOIN LATERAL (VALUES ('kind', c.relkind::text), ('owner', r.rolname::text), \
        ('persistence', c.relpersistence::text), ('row security', c.relrowsecurity::text || c.relforcerowsecurity::text), \
        ('options', array_to_string(c.reloptions, ' ')), ('replica identity', c.relreplident::text), ('populated', c.relispopulated::text), \
        ('^partition', pg_get_expr(c.relpartbound, c.oid)), ('comment', obj_description(c.oid, 'pg_class'))) f(fact, value) \
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'c', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
        AND NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')",
    ),
    // MAINTAIN came with release 17, as part of ALL.
    of(
        "relation",
        "SELECT n.nspname || '.' || c.relname, 'rights of ' || coalesce(r.rolname, 'everybody'), \
        string_agg(a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END, ' ' ORDER BY a.privilege_type) \
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL aclexplode(coalesce(c.relacl, \
        acldefault(CASE WHEN c.relkind = 'S' THEN 's' ELSE 'r' END::\"char\", c.relowner))) a LEFT JOIN pg_roles r ON r.oid = a.grantee \
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
        AND a.privilege_type <> 'MAINTAIN' AND NOT coalesce(r.rolsuper, false) \
        AND NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e') GROUP BY 1, 2",
    ),
    of(
        "relation",
        "SELECT n.nspname || '.' || c.relname, 'column ' || lpad((row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum))::text, 4, '0') || ' ' || a.attname, \
        concat_ws(' ', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END, 'identity ' || nullif(a.attidentity::text, ''), \
        'generated ' || nullif(a.attgenerated::text, ''), 'collation ' || nullif(k.collname, 'default'), (SELECT string_agg(o, ' ' ORDER BY o) FROM unnest(a.attoptions) o WHERE o !~ '^pg_'), 'rights ' || a.attacl::text, 'comment ' || col_description(c.oid, a.attnum)) \
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
        LEFT JOIN pg_collation k ON k.oid = a.attcollation WHERE a.attnum > 0 AND NOT a.attisdropped \
        AND c.relkind IN ('r', 'p', 'v', 'm', 'c', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
        AND NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')",
    ),
    of(
        "relation",
        "SELECT n.nspname || '.' || c.relname, '^default of ' || a.attname, pg_get_expr(d.adbin, d.adrelid) \
        FROM pg_attrdef d JOIN pg_class c ON c.oid = d.adrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
        JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
    ),
    of(
        "relation",
        "SELECT n.nspname || '.' || c.relname, f.fact || k.conname, f.value FROM pg_constraint k \
        JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL (VALUES \
        ('constraint ', concat_ws(' ', k.contype, k.condeferrable, k.condeferred, k.convalidated)), \
        ('^constraint ', pg_get_constraintdef(k.oid))) f(fact, value) WHERE k.contype <> 'n' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
    ),
    of(
        "relation",
        "SELECT n.nspname || '.' || c.relname, f.fact || x.relname, f.value FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid \
        JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am m ON m.oid = x.relam CROSS JOIN LATERAL (VALUES \
        ('index ', concat_ws(' ', m.amname, i.indisunique, i.indisprimary, i.indisvalid, i.indisclustered, i.indisreplident, i.indkey)), \
        ('^index ', pg_get_indexdef(x.oid))) f(fact, value) WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
        AND NOT EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attisdropped)",
    ),
    of(
        "relation",
        "SELECT n.nspname || '.' || c.relname, '~definition', pg_get_viewdef(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.relkind IN ('v', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
        AND NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')",
    ),
    of(
        "relation",
        "SELECT n.nspname || '.' || c.relname, f.fact || t.tgname, f.value FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid \
        JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL (VALUES ('trigger ', concat_ws(' ', t.tgtype, t.tgenabled, t.tgfoid::regproc)), \
        ('^trigger ', pg_get_triggerdef(t.oid))) f(fact, value) WHERE NOT t.tgisinternal AND n.nspname !~ '^pg_'",
    ),
    of(
        "relation",
        "SELECT n.nspname || '.' || c.relname, f.fact || p.polname, f.value FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid \
        JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL (VALUES ('policy ', concat_ws(' ', p.polcmd, p.polpermissive, \
        (SELECT string_agg(w, ',' ORDER BY w) FROM (SELECT CASE WHEN o = 0 THEN 'everybody' ELSE pg_get_userbyid(o)::text END FROM unnest(p.polroles) o) p(w)))), \
        ('^policy ', concat_ws(' / ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)))) f(fact, value)",
    ),
    of(
        "relation",
        "SELECT n.nspname || '.' || c.relname, '~rule ' || w.rulename, pg_get_ruledef(w.oid) FROM pg_rewrite w JOIN pg_class c ON c.oid = w.ev_class \
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE w.rulename <> '_RETURN' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
    ),
    of(
        "relation",
        "SELECT n.nspname || '.' || c.relname, 'inherits ' || i.inhseqno, i.inhparent::regclass::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'f')",
    ),
    of(
        "routine",
        "SELECT p.oid::regprocedure::text, f.fact, f.value FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
        JOIN pg_language l ON l.oid = p.prolang JOIN pg_roles r ON r.oid = p.proowner CROSS JOIN LATERAL (VALUES ('owner', r.rolname::text), \
        ('shape', concat_ws(' ', p.prokind, l.lanname, p.provolatile, p.prosecdef, p.proleakproof, p.proisstrict, p.proparallel, p.procost, p.prorows)), \
        ('result', pg_get_function_result(p.oid)), ('arguments', pg_get_function_identity_arguments(p.oid)), \
        ('^default arguments', pg_get_function_arguments(p.oid)), ('settings', array_to_string(p.proconfig, '; ')), \
        ('body', p.prosrc), ('comment', obj_description(p.oid, 'pg_proc'))) f(fact, value) WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
        AND NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')",
    ),
    Query {
        kind: "routine",
        since: 14,
        sql: "SELECT p.oid::regprocedure::text, '~SQL body', pg_get_function_sqlbody(p.oid) FROM pg_proc p \
        JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.prosqlbody IS NOT NULL AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
        AND NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')",
    },
    of(
        "routine",
        "SELECT p.oid::regprocedure::text, 'rights of ' || coalesce(r.rolname, 'everybody'), string_agg(a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END, ' ' ORDER BY a.privilege_type) \
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a \
        LEFT JOIN pg_roles r ON r.oid = a.grantee WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT coalesce(r.rolsuper, false) \
        AND NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e') GROUP BY 1, 2",
    ),
    of(
        "type",
        "SELECT t.oid::regtype::text, f.fact, f.value FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace JOIN pg_roles r ON r.oid = t.typowner \
        CROSS JOIN LATERAL (VALUES ('owner', r.rolname::text), ('shape', concat_ws(' ', t.typtype, t.typnotnull, format_type(nullif(t.typbasetype, 0), t.typtypmod))), \
        ('labels', (SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid)), \
        ('^default', t.typdefault), ('^checks', (SELECT string_agg(k.conname || ' ' || pg_get_constraintdef(k.oid), '; ' ORDER BY k.conname) FROM pg_constraint k WHERE k.contypid = t.oid)), \
        ('rights', t.typacl::text), ('comment', obj_description(t.oid, 'pg_type'))) f(fact, value) WHERE t.typtype IN ('d', 'e', 'r') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
        AND NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = 'pg_type'::regclass AND e.objid = t.oid AND e.deptype = 'e')",
    ),
    of(
        "extension",
        "SELECT e.extname, f.fact, f.value FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
        CROSS JOIN LATERAL (VALUES ('schema', n.nspname::text), ('~version', e.extversion)) f(fact, value)",
    ),
    // Only what differs from the server's own defaults, so that an entry that says just what they say
    // is like none; without MAINTAIN, as for relations.
    of(
        "defaults",
        "SELECT concat_ws(' ', r.rolname, n.nspname, d.defaclobjtype), 'rights of ' || coalesce(g.rolname, 'everybody'), coalesce(x.given, 'none') \
        FROM pg_default_acl d JOIN pg_roles r ON r.oid = d.defaclrole LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace CROSS JOIN LATERAL (\
        SELECT grantee, a.rights AS given, b.rights AS own FROM (SELECT grantee, string_agg(privilege_type || CASE WHEN is_grantable THEN '*' ELSE '' END, ' ' ORDER BY privilege_type) AS rights \
        FROM aclexplode(d.defaclacl) WHERE privilege_type <> 'MAINTAIN' GROUP BY grantee) a FULL JOIN \
        (SELECT grantee, string_agg(privilege_type || CASE WHEN is_grantable THEN '*' ELSE '' END, ' ' ORDER BY privilege_type) AS rights \
        FROM aclexplode(acldefault(CASE WHEN d.defaclobjtype = 'S' THEN 's' ELSE d.defaclobjtype END, d.defaclrole)) \
        WHERE privilege_type <> 'MAINTAIN' AND d.defaclnamespace = 0 GROUP BY grantee) b USING (grantee)) x \
        LEFT JOIN pg_roles g ON g.oid = x.grantee WHERE x.given IS DISTINCT FROM x.own",
    ),
    of(
        "publication",
        "SELECT p.pubname, 'shape', concat_ws(' ', r.rolname, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, \
        (SELECT string_agg(x.prrelid::regclass::text, ',' ORDER BY x.prrelid::regclass::text) FROM pg_publication_rel x WHERE x.prpubid = p.oid)) \
        FROM pg_publication p JOIN pg_roles r ON r.oid = p.pubowner",
    ),
    of(
        "text search",
        "SELECT 'configuration ' || n.nspname || '.' || c.cfgname, 'shape', r.rolname::text FROM pg_ts_config c JOIN pg_namespace n ON n.oid = c.cfgnamespace \
        JOIN pg_roles r ON r.oid = c.cfgowner WHERE n.nspname !~ '^pg_'",
    ),
    of(
        "collation",
        "SELECT n.nspname || '.' || c.collname, 'shape', concat_ws(' ', r.rolname, c.collprovider, c.collisdeterministic, c.collcollate, c.collctype) \
        FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace JOIN pg_roles r ON r.oid = c.collowner WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
    ),
    of(
        "operator",
        "SELECT o.oid::regoperator::text, 'shape', concat_ws(' ', r.rolname, o.oprcode) FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace \
        JOIN pg_roles r ON r.oid = o.oprowner WHERE n.nspname !~ '^pg_' AND NOT EXISTS (SELECT 1 FROM pg_depend e \
        WHERE e.classid = 'pg_operator'::regclass AND e.objid = o.oid AND e.deptype = 'e')",
    ),
    of(
        "statistics",
        "SELECT n.nspname || '.' || s.stxname, '^shape', pg_get_statisticsobjdef(s.oid) FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace",
    ),
    of(
        "comment",
        "SELECT i.type || ' ' || i.identity, 'text', d.description FROM pg_description d \
        CROSS JOIN LATERAL pg_identify_object(d.classoid, d.objoid, d.objsubid) i WHERE d.objoid >= 16384 \
        AND d.classoid <> 'pg_extension'::regclass AND NOT EXISTS (SELECT 1 FROM pg_depend e \
        WHERE e.classid = d.classoid AND e.objid = d.objoid AND e.deptype = 'e')",
    ),
];
