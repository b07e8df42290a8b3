//! `ferry events`.

use std::time::{Duration, Instant};

use ferry_proto::v1::{ListEventsRequest, ListEventsResponse};
use serde::Serialize;

use crate::args::EventsArgs;
use crate::connection::Operator;
use crate::exit::{Exit, Failure};
use crate::screen::Screen;
use crate::text;

/// How long the controller may be away while events are followed.
const AWAY: Duration = Duration::from_secs(120);

/// Between two attempts to reach it.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct EventRow<'a> {
    number: u64,
    at_unix_ms: i64,
    job: &'a str,
    account: &'a str,
    text: &'a str,
    event: Option<serde_json::Value>,
}

/// `ferry events`.
pub async fn show(operator: &Operator, screen: &Screen, args: EventsArgs) -> Result<Exit, Failure> {
    let mut request = ListEventsRequest {
        account: args.account.as_ref().map(ToString::to_string).unwrap_or_default(),
        job: args.job.map(|job| job.to_string()).unwrap_or_default(),
        follow: args.follow,
        after: args.after,
    };
    let mut heard = Instant::now();
    let mut lost = false;
    loop {
        let failure = match listen(operator, screen, &mut request, &mut heard, &mut lost).await {
            Ok(()) if !args.follow => return Ok(Exit::Done),
            // It was told to go on: the controller is stopping.
            Ok(()) => None,
            Err(failure) if args.follow && failure.exit() == Exit::Unreachable => Some(failure),
            Err(failure) => return Err(failure),
        };
        if heard.elapsed() >= AWAY {
            return failure.map_or(Ok(Exit::Unreachable), Err);
        }
        if !lost {
            lost = true;
            screen.note("The connection to the controller was lost. Trying again ...");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Shows what one stream tells; afterwards `request` asks for what comes after it.
async fn listen(
    operator: &Operator,
    screen: &Screen,
    request: &mut ListEventsRequest,
    heard: &mut Instant,
    lost: &mut bool,
) -> Result<(), Failure> {
    let mut events = operator.list_events(request.clone()).await?;
    *heard = Instant::now();
    if std::mem::take(lost) {
        screen.note("The controller is back.");
    }
    while let Some(event) = events.next().await? {
        *heard = Instant::now();
        request.after = event.number;
        if screen.json() {
            screen.json_line(&row(&event))?;
        } else {
            screen.text(&line(&event))?;
        }
    }
    Ok(())
}

fn row(event: &ListEventsResponse) -> EventRow<'_> {
    EventRow {
        number: event.number,
        at_unix_ms: event.at_unix_ms,
        job: &event.job,
        account: &event.account,
        text: &event.text,
        event: serde_json::from_slice(&event.event).ok(),
    }
}

fn line(event: &ListEventsResponse) -> String {
    format!(
        "{}  {}  {}\n",
        text::moment(event.at_unix_ms.div_euclid(1000)),
        text::safe(&event.account),
        text::safe(&event.text)
    )
}
