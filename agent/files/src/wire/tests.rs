//! Frames through a pipe, and what a failing connection has brought.

use std::collections::VecDeque;
use std::task::Context;

use tokio::io::ReadBuf;

use super::*;
use crate::protocol::MAX_DATA;

/// What each read gives.
struct Steps(VecDeque<std::io::Result<Vec<u8>>>);

impl AsyncRead for Steps {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let step = self.0.pop_front().unwrap_or_else(|| Ok(Vec::new()));
        Poll::Ready(step.map(|bytes| buffer.put_slice(&bytes)))
    }
}

/// As many bytes, of which no two pieces are alike.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 3 + at / 256 + length) as u8).collect()
}

/// Sends contents of these lengths through a pipe, and answers how long the chunks were in which they came.
async fn sent(lengths: &[usize], pipe: usize) -> Vec<usize> {
    let (one, other) = tokio::io::duplex(pipe);
    let (halt, counters) = (Halt::default(), Counters::default());
    let start = |stream| Pumps::start(stream, &Limits::default(), &halt, &counters);
    let ((source, to), (target, mut from)) = (start(one), start(other));
    let mut out = Outbox::new(to.outgoing, halt.clone());
    let list = lengths.to_vec();
    let sending = tokio::task::spawn_blocking(move || {
        for length in list {
            out.put(&Frame::Data(&content(length))).unwrap();
        }
        out.flush().unwrap();
    });
    let (mut chunks, mut left) = (Vec::new(), lengths.iter());
    while left.len() > 0 {
        let chunk = from.incoming.recv().await.unwrap();
        chunks.push(chunk.len());
        for_each_frame(chunk, |frame| {
            let expected = content(*left.next().unwrap());
            assert!(matches!(frame, Frame::Data(bytes) if bytes == expected), "{}", expected.len());
            Ok(())
        })
        .unwrap();
    }
    sending.await.unwrap();
    drop((from, to.incoming));
    tokio::join!(source.finish(), target.finish());
    chunks
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_come_whole_whatever_their_lengths_and_pieces() {
    let edges = [LONG - HEADER, LONG, CHUNK - HEADER, MAX_DATA].map(|at| [at - 1, at]);
    let mut lengths = vec![0, 1, 4, 20_000, 0, 7_000];
    lengths.extend(edges.as_flattened());
    let small = lengths.clone();
    lengths.extend(small.iter().rev());
    for pipe in [1_000, 16 * 1024, 1 << 20] {
        sent(&lengths, pipe).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_frames_come_alone_and_short_ones_together() {
    let long = sent(&[MAX_DATA; 20], 16 * 1024).await;
    assert_eq!(long, [MAX_DATA + HEADER; 20]);
    let short = sent(&[1_000; 2_000], 1 << 20).await;
    assert!(short.len() < 200, "{}", short.len());
    assert!(short.iter().all(|length| *length <= CHUNK));
}

#[tokio::test]
async fn what_came_before_a_failure_is_read_and_the_failure_told() {
    let mut alive = Vec::new();
    Frame::KeepAlive.encode(&mut alive);
    let data = content(100);
    let mut frame = Vec::new();
    Frame::Data(&data).encode(&mut frame);
    let reset = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let (first, second) = frame.split_at(50);
    let came = [alive, first.to_vec(), second.to_vec()].map(Ok);
    let mut stream = Steps(came.into_iter().chain([Err(reset())]).collect());
    let (arrived, mut incoming) = mpsc::channel(QUEUE);
    let reading = Reading { arrived, halt: Halt::default(), counters: Counters::default() };
    let fault = reading.pump(&mut stream).await.unwrap_err();
    assert!(fault.causes[0].contains("reset"), "{fault:?}");
    let mut count = 0;
    for_each_frame(incoming.try_recv().unwrap(), |frame| {
        assert_eq!(frame, Frame::Data(&data));
        count += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(count, 1);
}

#[test]
fn what_a_peer_only_says_takes_no_memory() {
    assert_eq!(wanted(&[]), CHUNK);
    assert_eq!(wanted(&u32::MAX.to_le_bytes()), CHUNK);
    assert_eq!(wanted(&(MAX_FRAME as u32).to_le_bytes()), CHUNK);
    assert_eq!(wanted(&[&[100, 0, 0, 0][..], &[0; 50]].concat()), CHUNK - 54);
}
