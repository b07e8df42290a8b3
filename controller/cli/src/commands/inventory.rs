//! Servers and accounts: what there is.

use ferry_proto::ids::ServerName;
use ferry_proto::v1;
use serde::Serialize;

use crate::args::Role;
use crate::connection::Operator;
use crate::exit::{Exit, Failure};
use crate::screen::Screen;
use crate::text;

#[derive(Serialize)]
struct AddedServer<'a> {
    name: &'a ServerName,
    role: &'a str,
    token: &'a str,
    expires_unix: i64,
}

#[derive(Serialize)]
struct RevokedServer<'a> {
    name: &'a ServerName,
    was_connected: bool,
}

#[derive(Serialize)]
struct ServerRow<'a> {
    name: &'a str,
    role: &'a str,
    state: &'a str,
    connected: bool,
    version: &'a str,
    system: &'a str,
    peer_address: &'a str,
    certificate_not_after_unix: i64,
    last_seen_unix: i64,
}

#[derive(Serialize)]
struct AccountRow<'a> {
    name: &'a str,
    server: &'a str,
    standing: &'a str,
    epoch: u64,
    moved_to: &'a str,
    domains: &'a [String],
    connected: bool,
}

#[derive(Serialize)]
struct Accounts<'a> {
    accounts: Vec<AccountRow<'a>>,
    problems: &'a [String],
}

/// `ferry server add`.
pub async fn add_server(
    operator: &Operator,
    screen: &Screen,
    name: &ServerName,
    role: Role,
    valid: Option<u32>,
) -> Result<Exit, Failure> {
    let request = v1::AddServerRequest {
        name: name.to_string(),
        role: role.as_str().to_owned(),
        token_seconds: valid.unwrap_or(0),
    };
    let answer = operator.add_server(request).await?;
    if screen.json() {
        let added = AddedServer {
            name,
            role: role.as_str(),
            token: &answer.token,
            expires_unix: answer.expires_unix,
        };
        screen.document(&added)?;
        return Ok(Exit::Done);
    }
    // The token alone, so that it can be sent to a file.
    screen.text(&(text::safe(&answer.token) + "\n"))?;
    screen.note(&format!(
        "This token enrols {name}, once, until {}. On {name}, with the token in a file:\n  \
         ferry-agent enroll --controller HOST:PORT --token-file FILE",
        text::moment(answer.expires_unix)
    ));
    Ok(Exit::Done)
}

/// `ferry server list`.
pub async fn servers(operator: &Operator, screen: &Screen) -> Result<Exit, Failure> {
    let servers = operator.list_servers().await?;
    if screen.json() {
        let rows: Vec<_> = servers.iter().map(server_row).collect();
        screen.document(&rows)?;
        return Ok(Exit::Done);
    }
    if servers.is_empty() {
        screen.note("No servers yet: ferry server add NAME --role client");
        return Ok(Exit::Done);
    }
    let rows = servers.into_iter().map(|server| {
        let link = if server.connected {
            "connected".to_owned()
        } else if server.last_seen_unix == 0 {
            "never seen".to_owned()
        } else {
            format!("last seen {}", text::moment(server.last_seen_unix))
        };
        vec![
            server.name,
            server.role,
            server.state,
            link,
            server.version,
            server.system,
            server.peer_address,
            text::moment(server.certificate_not_after_unix),
        ]
    });
    let header = [
        "server",
        "role",
        "state",
        "agent",
        "version",
        "system",
        "peers reach it at",
        "certificate until",
    ];
    screen.text(&text::table(&header, rows.collect(), &[]))?;
    Ok(Exit::Done)
}

fn server_row(server: &v1::Server) -> ServerRow<'_> {
    ServerRow {
        name: &server.name,
        role: &server.role,
        state: &server.state,
        connected: server.connected,
        version: &server.version,
        system: &server.system,
        peer_address: &server.peer_address,
        certificate_not_after_unix: server.certificate_not_after_unix,
        last_seen_unix: server.last_seen_unix,
    }
}

/// `ferry server revoke`.
pub async fn revoke(
    operator: &Operator,
    screen: &Screen,
    name: &ServerName,
) -> Result<Exit, Failure> {
    let was_connected = operator.revoke_server(name.to_string()).await?;
    if screen.json() {
        screen.document(&RevokedServer { name, was_connected })?;
    } else {
        let link =
            if was_connected { "was connected and has been cut off" } else { "was not connected" };
        screen.text(&format!(
            "{name} is revoked: its certificate is no longer accepted. It {link}.\n"
        ))?;
    }
    Ok(Exit::Done)
}

/// `ferry account list`.
pub async fn accounts(operator: &Operator, screen: &Screen) -> Result<Exit, Failure> {
    let answer = operator.list_accounts().await?;
    if screen.json() {
        let accounts = answer.accounts.iter().map(account_row).collect();
        screen.document(&Accounts { accounts, problems: &answer.problems })?;
        return Ok(Exit::Done);
    }
    if answer.accounts.is_empty() {
        screen.note(
            "No accounts: none of the connected servers defines one in /etc/ferry/accounts.d.",
        );
    } else {
        let rows = answer.accounts.into_iter().map(|account| {
            vec![
                account.name,
                account.server,
                account.standing,
                account.epoch.to_string(),
                account.moved_to,
                if account.connected { "yes" } else { "no" }.to_owned(),
                few(&account.domains),
            ]
        });
        let header = ["account", "server", "standing", "epoch", "moved to", "connected", "domains"];
        screen.text(&text::table(&header, rows.collect(), &[3]))?;
    }
    if !answer.problems.is_empty() {
        screen.note("\nDefinitions that are not right, and are ignored:");
        for problem in &answer.problems {
            screen.note(&format!("  {}", text::safe(problem)));
        }
    }
    Ok(Exit::Done)
}

fn account_row(account: &v1::Account) -> AccountRow<'_> {
    AccountRow {
        name: &account.name,
        server: &account.server,
        standing: &account.standing,
        epoch: account.epoch,
        moved_to: &account.moved_to,
        domains: &account.domains,
        connected: account.connected,
    }
}

/// The first domains, and how many more there are.
fn few(domains: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text = domains.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(" ");
    if domains.len() > SHOWN {
        text.push_str(&format!(" and {} more", domains.len() - SHOWN));
    }
    text
}
