//! Hard links at the target: which name of an inode stands for it, and which names wait for it. It must
//! not know how a name is made.

use std::collections::HashMap;
use std::sync::Arc;

use ferry_proto::Fault;

use crate::codec::Malformed;
use crate::confine::Node;
use crate::entries::Link;
use crate::halt::protocol_fault;
use crate::linked::MAX_LINKS;
use crate::locks::Locks;
use crate::metadata::Identity;

/// The name that stands for an inode in this pass.
#[derive(Debug, Clone)]
pub struct Master {
    /// Its directory.
    pub node: Arc<Node>,
    /// Its name there.
    pub name: Box<[u8]>,
    /// The inode.
    pub identity: Identity,
    /// Its flags.
    pub locks: Locks,
}

#[derive(Debug)]
enum State<W> {
    /// Its content is on the way; these wait for it.
    Coming(Vec<W>),
    /// It stands.
    Standing(Master),
}

#[derive(Debug)]
struct Group<W> {
    state: State<W>,
    met: u32,
    names: u32,
}

/// What is to be done with the next name of an inode.
#[derive(Debug)]
pub enum Meeting {
    /// It is the first: it stands for the inode.
    First,
    /// It waits for the first.
    Waits,
    /// It is another name of this one.
    Another(Master),
}

/// All inodes with several names of which not all were met.
#[derive(Debug)]
pub struct Links<W> {
    groups: HashMap<u64, Group<W>>,
}

impl<W> Default for Links<W> {
    fn default() -> Self {
        Self { groups: HashMap::new() }
    }
}

impl<W> Links<W> {
    /// Meets the next name of an inode; if it has to wait, `waiting` is kept.
    pub fn meet(&mut self, link: Link, waiting: impl FnOnce() -> W) -> Result<Meeting, Fault> {
        if self.groups.len() > 2 * MAX_LINKS {
            return Err(protocol_fault(&Malformed("more hard links than it may")));
        }
        let Some(group) = self.groups.get_mut(&link.group) else {
            let state = State::Coming(Vec::new());
            self.groups.insert(link.group, Group { state, met: 1, names: link.names });
            return Ok(Meeting::First);
        };
        group.met = group.met.saturating_add(1);
        let meeting = match &mut group.state {
            State::Coming(all) => {
                all.push(waiting());
                Meeting::Waits
            }
            State::Standing(master) => Meeting::Another(master.clone()),
        };
        self.forget_if_complete(link.group);
        Ok(meeting)
    }

    /// The first name stands now. Answers who waited.
    pub fn stands(&mut self, group: u64, master: Master) -> Vec<W> {
        let waited = match self.groups.get_mut(&group) {
            Some(found) => match std::mem::replace(&mut found.state, State::Standing(master)) {
                State::Coming(waited) => waited,
                State::Standing(_) => Vec::new(),
            },
            None => Vec::new(),
        };
        self.forget_if_complete(group);
        waited
    }

    /// The first name did not come to be; the next one is first. Answers who waited.
    pub fn failed(&mut self, group: u64) -> Vec<W> {
        match self.groups.remove(&group).map(|group| group.state) {
            Some(State::Coming(waited)) => waited,
            _ => Vec::new(),
        }
    }

    fn forget_if_complete(&mut self, group: u64) {
        let complete = |g: &Group<W>| g.met >= g.names && matches!(g.state, State::Standing(_));
        if self.groups.get(&group).is_some_and(complete) {
            self.groups.remove(&group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master() -> Master {
        Master {
            node: Node::root(),
            name: b"x".as_slice().into(),
            identity: Identity { dev: (0, 0), ino: 7 },
            locks: Locks::NONE,
        }
    }

    #[test]
    fn names_wait_for_the_first_and_are_forgotten_after_the_last() {
        let mut links = Links::default();
        let link = Link { group: 1, names: 3 };
        assert!(matches!(links.meet(link, || 'a'), Ok(Meeting::First)));
        assert!(matches!(links.meet(link, || 'b'), Ok(Meeting::Waits)));
        assert_eq!(links.stands(1, master()), ['b']);
        assert!(matches!(links.meet(link, || 'c'), Ok(Meeting::Another(_))));
        assert!(links.groups.is_empty());
    }

    #[test]
    fn after_a_failure_the_next_is_first() {
        let mut links = Links::default();
        let link = Link { group: 1, names: 9 };
        assert!(matches!(links.meet(link, || 'a'), Ok(Meeting::First)));
        assert!(matches!(links.meet(link, || 'b'), Ok(Meeting::Waits)));
        assert_eq!(links.failed(1), ['b']);
        assert!(matches!(links.meet(link, || 'c'), Ok(Meeting::First)));
    }
}
