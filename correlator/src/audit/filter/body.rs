//! Bodies: an `EventList`, one event, or an array of events.

use super::walk;
use super::{Decision, Filter, plain};

/// What is to be looked at in a body.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// All events of the body.
    pub events: u64,
    /// Those to look at, in their order.
    pub look: Vec<Place>,
}

/// Where an event's text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which of the body's events it is, from 0.
    pub index: usize,
    pub begin: usize,
    pub end: usize,
}

impl Filter {
    /// Decides on every event of a body. Events that are broken inside cost no neighbour, as long as their strings and
    /// brackets end. `None`: a parser must say what this is.
    pub fn body(&mut self, text: &[u8]) -> Option<Found> {
        let mut found = Found::default();
        let begin = walk::blank(text, 0);
        let end = match text.get(begin)? {
            b'[' => self.list(text, begin, &mut found)?,
            b'{' => self.object(text, begin, &mut found)?,
            _ => return None,
        };
        (walk::blank(text, end) == text.len()).then_some(found)
    }

    fn object(&mut self, text: &[u8], begin: usize, found: &mut Found) -> Option<usize> {
        let (mut kind, mut has_items, mut has_id, mut odd) = (None, false, false, false);
        let end = walk::members_with(text, begin, |key, at| {
            match key {
                Some(b"items") if text.get(at) == Some(&b'[') && !has_items => {
                    has_items = true;
                    return self.list(text, at, found);
                }
                None | Some(b"items") => odd = true,
                Some(b"kind") => {
                    let end = walk::value(text, at)?;
                    odd |= kind.replace(plain(text.get(at..end))?).is_some();
                    return Some(end);
                }
                Some(b"auditID") => has_id = true,
                Some(_) => {}
            }
            walk::value(text, at)
        })?;
        match kind {
            _ if odd => None,
            Some(b"EventList") | None if has_items => Some(end),
            Some(b"Event") if !has_items => self.alone(text, begin, found),
            None if has_id => self.alone(text, begin, found),
            _ => None,
        }
    }

    fn alone(&mut self, text: &[u8], begin: usize, found: &mut Found) -> Option<usize> {
        let (decision, end) = self.event_at(text, begin)?;
        found.events = 1;
        if decision == Decision::Look {
            found.look.push(Place { index: 0, begin, end });
        }
        Some(end)
    }

    fn list(&mut self, text: &[u8], begin: usize, found: &mut Found) -> Option<usize> {
        walk::elements(text, begin, |at| {
            let index = usize::try_from(found.events).ok()?;
            found.events += 1;
            let (decision, end) = match self.event_at(text, at) {
                Some(decided) => decided,
                None => (Decision::Look, walk::value(text, at)?),
            };
            if decision == Decision::Look {
                found.look.push(Place { index, begin: at, end });
            }
            Some(end)
        })
    }
}
