//! The decoder alone: whatever it is given, it answers.

use std::collections::BTreeMap;

use ferry_proto::approval::Device;
use proptest::prelude::*;

use super::{config, entry, harmed, harms};
use crate::attributes::Attribute;
use crate::entries::{Entry, Link, What, Withheld};
use crate::locks::Locks;
use crate::metadata::Time;
use crate::projects::Project;
use crate::protocol::{Batch, Ending, Frame, MAX_DATA, Place, Purpose, Range, Unlisted};
use crate::shares::{self, Part, Share};

fn entries() -> impl Strategy<Value = Entry> {
    let name = prop::collection::vec(1..=255_u8, 1..=255)
        .prop_filter("one component", |name| crate::names::is_valid(name));
    let what = prop_oneof![
        any::<u64>().prop_map(What::File),
        Just(What::Directory),
        prop::collection::vec(1..=255_u8, 1..300).prop_map(What::Symlink),
        Just(What::Fifo),
        (any::<bool>(), any::<u32>(), any::<u32>())
            .prop_map(|(block, major, minor)| What::Device(Device { block, major, minor })),
    ];
    let attributes = prop::collection::btree_map(
        prop::collection::vec(1..=255_u8, 1..=255),
        prop::collection::vec(any::<u8>(), 0..100),
        0..4,
    );
    let link = prop::option::of((any::<u64>(), any::<u32>()));
    let metadata = (0..=0o7777_u16, any::<u32>(), any::<u32>(), any::<i64>(), 0..1_000_000_000_u32);
    let moved = prop::option::of(any::<u32>());
    let locks = (any::<bool>(), any::<bool>())
        .prop_map(|(immutable, append_only)| Locks { immutable, append_only });
    let project = (any::<u32>(), any::<bool>()).prop_map(|(id, inherits)| Project { id, inherits });
    let kept = (locks, prop::option::of(project));
    (name, what, metadata, link, attributes, any::<bool>(), moved, kept).prop_map(
        |(name, what, (mode, uid, gid, sec, nsec), link, attributes, doubtful, moved, kept)| {
            let link = link.filter(|_| what != What::Directory);
            let moved = moved.filter(|_| what == What::Directory);
            let may_have = matches!(what, What::File(_) | What::Directory);
            let (locks, project) = if may_have { kept } else { (Locks::NONE, None) };
            Entry {
                name,
                what,
                mode,
                uid,
                gid,
                mtime: Time { sec, nsec },
                link: link.map(|(group, names)| Link { group, names }),
                attributes: attributes
                    .into_iter()
                    .map(|(name, value)| Attribute { name, value })
                    .collect(),
                doubtful,
                moved,
                locks,
                project,
            }
        },
    )
}

/// A batch of these, each name once and in order.
fn batch(entries: Vec<Entry>) -> Frame<'static> {
    let sorted: BTreeMap<_, _> = entries.into_iter().map(|e| (e.name.clone(), e)).collect();
    let directory = Some(Place { batch: 7, index: 8 });
    let entries = sorted.into_values().collect();
    Frame::Batch(Batch { number: 9, directory, last: false, partial: false, entries })
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn decoding_never_panics(kind in any::<u8>(), payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Frame::decode(kind, &payload);
        let _ = Frame::decode(kind % 29, &payload);
    }

    #[test]
    fn decoding_a_harmed_batch_never_panics(
        entries in prop::collection::vec(entries(), 1..5),
        harms in harms(),
    ) {
        let mut bytes = Vec::new();
        batch(entries).encode(&mut bytes);
        let payload = harmed(bytes.split_off(5), &harms);
        let _ = Frame::decode(4, &payload);
    }

    #[test]
    fn what_is_encoded_is_decoded(entries in prop::collection::vec(entries(), 1..5)) {
        let frame = batch(entries);
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        prop_assert_eq!(Frame::decode(bytes[4], &bytes[5..]), Ok(frame));
    }
}

#[test]
fn every_kind_of_frame_is_decoded_as_it_was_encoded() {
    let place = Place { batch: u64::MAX, index: 65_535 };
    let data = vec![7; MAX_DATA];
    for frame in [
        Frame::Hello(Purpose::Verify),
        Frame::Root(entry(b"", What::Directory), false),
        Frame::Root(entry(b"", What::Directory), true),
        Frame::Moved(vec![b"a".to_vec(), b"\xff".to_vec()]),
        Frame::Unlisted(None, Unlisted::Unreadable(5)),
        Frame::Unlisted(Some(place), Unlisted::Vanished),
        Frame::Unlisted(Some(place), Unlisted::Untouched),
        batch(vec![entry(b"x", What::Withheld(Withheld::Foreign(9))).withheld_only()]),
        Frame::Batch(Batch {
            number: u64::MAX,
            directory: None,
            last: true,
            partial: true,
            entries: vec![Entry::gone(b"gone")],
        }),
        Frame::WalkEnd,
        Frame::Whole(place, Ending::Settled, &data),
        Frame::Part(Range { place, size: u64::MAX, offset: 1, length: u64::MAX - 1 }),
        Frame::Data(&data),
        Frame::Hole(1),
        Frame::PartEnd(Ending::Changed),
        Frame::Skip(place, Ending::Unreadable(13)),
        Frame::Hash(place, Ending::Settled, 0, [3; 32]),
        Frame::Share(Share {
            from: vec![b"a".to_vec(); shares::MAX_DEPTH],
            to: vec![b"\xff".to_vec()],
            parts: vec![Part {
                from: 0,
                to: u64::MAX / 2 - shares::SMALLEST,
                length: shares::SMALLEST,
            }],
        }),
        Frame::Done,
        Frame::Summary(b"{}"),
        Frame::Same(7),
        Frame::Wants(3, b"\x05", vec![0, 2]),
        Frame::Blocks(place, 4, vec![[7; 16], *crate::blocks::ZERO, [8; 16]]),
        Frame::Report(b"r"),
        Frame::Fault(b"f"),
        Frame::KeepAlive,
        Frame::Bye,
        Frame::CanShare,
    ] {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        assert_eq!(length, bytes.len() - 4);
        assert_eq!(Frame::decode(bytes[4], &bytes[5..]), Ok(frame));
    }
    let too_long = vec![0; MAX_DATA + 1];
    assert!(Frame::decode(8, &too_long).is_err());
}

impl Entry {
    /// What crosses the stream of a withheld entry.
    fn withheld_only(self) -> Self {
        Self { name: self.name, ..Self::of(self.what) }
    }
}

#[test]
fn what_cannot_be_shared_is_not_decoded() {
    let name = |name: &[u8]| vec![name.to_vec()];
    let part = |from, to, length| Part { from, to, length };
    let fine = part(0, 1 << 40, shares::SMALLEST);
    let deep = vec![b"d".to_vec(); shares::MAX_DEPTH + 1];
    let too_far = i64::MAX as u64 - 4096;
    for (from, to, parts) in [
        (vec![], name(b"b"), vec![fine]),
        (name(b".."), name(b"b"), vec![fine]),
        (name(b"a/b"), name(b"b"), vec![fine]),
        (name(b"a"), name(b""), vec![fine]),
        (name(b"a"), name(b".ferry-tmp.0123456789abcdef0123456789abcdef"), vec![fine]),
        (name(b"a"), deep, vec![fine]),
        (name(b"a"), name(b"b"), vec![]),
        (name(b"a"), name(b"b"), vec![fine; shares::MAX_PARTS + 1]),
        (name(b"a"), name(b"b"), vec![fine, part(0, 0, shares::SMALLEST - 1)]),
        (name(b"a"), name(b"b"), vec![part(0, 0, u64::MAX)]),
        (name(b"a"), name(b"b"), vec![part(u64::MAX, 0, shares::SMALLEST)]),
        (name(b"a"), name(b"b"), vec![part(0, too_far, shares::SMALLEST)]),
    ] {
        let mut bytes = Vec::new();
        let frame = Frame::Share(Share { from, to, parts });
        frame.encode(&mut bytes);
        assert!(Frame::decode(bytes[4], &bytes[5..]).is_err(), "{frame:?}");
    }
}
