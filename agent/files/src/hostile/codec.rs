//! The decoder alone: whatever it is given, it answers.

use proptest::prelude::*;

use super::{config, entry, harmed, harms};
use crate::attributes::Attribute;
use crate::entries::{Entry, Link, What, Withheld};
use crate::metadata::Time;
use crate::protocol::{DirStatus, Ending, Frame, MAX_DATA, Place, Purpose};

fn entries() -> impl Strategy<Value = Entry> {
    let name = prop::collection::vec(1..=255_u8, 1..=255)
        .prop_filter("one component", |name| crate::names::is_valid(name));
    let what = prop_oneof![
        any::<u64>().prop_map(What::File),
        Just(What::Directory),
        prop::collection::vec(1..=255_u8, 1..300).prop_map(What::Symlink),
        Just(What::Fifo),
        Just(What::Device),
    ];
    let attributes = prop::collection::btree_map(
        prop::collection::vec(1..=255_u8, 1..=255),
        prop::collection::vec(any::<u8>(), 0..100),
        0..4,
    );
    let link = prop::option::of((any::<u64>(), any::<u32>()));
    let metadata = (0..=0o7777_u16, any::<u32>(), any::<u32>(), any::<i64>(), 0..1_000_000_000_u32);
    (name, what, metadata, link, attributes, any::<bool>()).prop_map(
        |(name, what, (mode, uid, gid, sec, nsec), link, attributes, doubtful)| {
            let link = link.filter(|_| what != What::Directory);
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
            }
        },
    )
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn decoding_never_panics(kind in any::<u8>(), payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Frame::decode(kind, &payload);
        let _ = Frame::decode(kind % 25, &payload);
    }

    #[test]
    fn decoding_a_harmed_batch_never_panics(
        entries in prop::collection::vec(entries(), 1..5),
        harms in harms(),
    ) {
        let mut bytes = Vec::new();
        Frame::Batch(entries).encode(&mut bytes);
        let payload = harmed(bytes.split_off(5), &harms);
        let _ = Frame::decode(4, &payload);
    }

    #[test]
    fn what_is_encoded_is_decoded(entries in prop::collection::vec(entries(), 1..5)) {
        let frame = Frame::Batch(entries);
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
        Frame::Root(entry(b"", What::Directory)),
        Frame::Dir(DirStatus::Unreadable(5)),
        Frame::Dir(DirStatus::Vanished),
        Frame::Batch(vec![entry(b"x", What::Withheld(Withheld::Foreign(9))).withheld_only()]),
        Frame::DirEnd,
        Frame::WalkEnd,
        Frame::File(place, u64::MAX),
        Frame::Data(&data),
        Frame::Hole(1),
        Frame::FileEnd(Ending::Changed),
        Frame::Skip(place, Ending::Unreadable(13)),
        Frame::Hash(place, Ending::Settled, 0, [3; 32]),
        Frame::Summary(b"{}"),
        Frame::Wants(3, b"\x05"),
        Frame::Report(b"r"),
        Frame::Fault(b"f"),
        Frame::KeepAlive,
        Frame::Bye,
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
