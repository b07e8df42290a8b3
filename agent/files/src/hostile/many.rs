//! A source that is faster than we are: its streams hold more small contents than may be wanted at once.

use bytes::BytesMut;
use tokio::sync::mpsc;

use super::*;
use crate::mirror::MAX_AWAITED;
use crate::protocol::MAX_BATCH;
use crate::{Streams, wire};

/// As many batches as hold twice what may be wanted.
const BATCHES: u64 = 2 * (MAX_AWAITED / MAX_BATCH) as u64;

fn files(number: u64) -> Vec<Entry> {
    let name = |index: usize| format!("{number:04}-{index:03}").into_bytes();
    (0..MAX_BATCH).map(|index| entry(&name(index), What::File(0))).collect()
}

/// Lists all of them, at once.
fn listed() -> Vec<u8> {
    let mut frames = opening(files(0));
    frames.extend((1..BATCHES).map(|number| batch(number, None, files(number), false)));
    frames.push(batch(BATCHES, None, Vec::new(), true));
    frames.extend(closing().split_off(1));
    encoded(&frames)
}

/// Tells which batches were answered.
async fn hear(
    mut control: impl tokio::io::AsyncRead + Unpin,
    answered: mpsc::UnboundedSender<u64>,
) {
    let mut buffer = BytesMut::new();
    while matches!(control.read_buf(&mut buffer).await, Ok(1..)) {
        let (whole, _) = wire::whole_frames(&buffer).unwrap_or((0, false));
        let _ = wire::for_each_frame(buffer.split_to(whole).freeze(), |frame| {
            if let Frame::Wants(number, ..) = frame {
                let _ = answered.send(number);
            }
            Ok(())
        });
    }
}

/// Sends nothing before half of all is wanted; then whatever is.
async fn send(mut data: tokio::io::DuplexStream, mut answered: mpsc::UnboundedReceiver<u64>) {
    let mut wanted = Vec::new();
    let mut left = BATCHES;
    while left > 0 {
        let Some(number) = answered.recv().await else { return };
        if number == BATCHES {
            continue;
        }
        wanted.push(number);
        if (wanted.len() as u64) < left.min(BATCHES / 2) && left == BATCHES {
            continue;
        }
        for batch in wanted.drain(..) {
            let whole = |index| Frame::Whole(Place { batch, index }, Ending::Settled, b"");
            let frames: Vec<_> = (0..MAX_BATCH as u16).map(whole).collect();
            if data.write_all(&encoded(&frames)).await.is_err() {
                return;
            }
            left -= 1;
        }
    }
    let _ = data.write_all(&encoded(&[Frame::Done])).await;
    let _ = data.read_to_end(&mut Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_asked_for_than_is_dealt_with() {
    let place = place();
    let (control, far) = tokio::io::duplex(64 * 1024);
    let (data, data_far) = tokio::io::duplex(64 * 1024);
    let target = Streams { control: far, data: vec![data_far] };
    let cancel = CancellationToken::new();
    let receive = crate::receive_pass(&place.root, target, target_options(), progress(), cancel);
    let (from, mut to) = tokio::io::split(control);
    let (answers, answered) = mpsc::unbounded_channel();
    let say = async {
        let _ = to.write_all(&listed()).await;
        let _ = to.shutdown().await;
    };
    let (report, (), (), ()) =
        tokio::join!(receive, say, hear(from, answers), send(data, answered));
    let report = report.expect("an honest pass");
    assert_eq!(report.files_sent, BATCHES * MAX_BATCH as u64);
}
