//! The fast filter: which events can be let go without being parsed.
//!
//! What holds:
//! - [`Decision::Irrelevant`] is said only of an event that the whole parse would not keep either, whatever its white
//!   space, the order of its keys, its escapes, and what it repeats. Everything else is [`Decision::Look`]: it is parsed
//!   whole, and [`super::Head::kept`] decides.
//! - An event whose text breaks off, or that is no object, is looked at. One that is broken in a way that does not show in
//!   its strings and brackets, and that names nothing of interest, is counted as irrelevant.
//!
//! Why it is right without parsing: an event matters only by what its `objectRef` names. In a text without escapes that
//! could spell a letter, a key `objectRef` stands as `"objectRef"`, with its quotes, and inside a string its quotes would be
//! escaped. So where these eleven bytes occur once, the object behind them is either the event's own, or the event has
//! none. The same goes for `"verb"`. Where they occur more often, the event's members are walked one by one.

mod body;
mod kinds;
mod line;
mod walk;

pub use body::{Found, Place};
pub use kinds::Kinds;

use super::kind::{self, Possible, Target};
use walk::Member;

/// What the filter says of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Counted by its kind and let go.
    Irrelevant,
    /// To be parsed whole.
    Look,
}

/// Decides, and counts what it lets go.
#[derive(Debug, Default)]
pub struct Filter {
    pub kinds: Kinds,
    finders: line::Finders,
}

/// What an event's top level tells of it.
#[derive(Default)]
struct Top<'a> {
    verb: Option<&'a [u8]>,
    target: Option<&'a [u8]>,
    received: Option<&'a [u8]>,
    /// Something that the whole parse must judge: a key twice, or written with escapes, or a list's.
    odd: bool,
}

impl<'a> Top<'a> {
    fn take(&mut self, member: Member<'a>) {
        let place = match member.key {
            Some(b"verb") => &mut self.verb,
            Some(b"objectRef") => &mut self.target,
            Some(b"requestReceivedTimestamp") => &mut self.received,
            None | Some(b"items") => {
                self.odd = true;
                return;
            }
            Some(_) => return,
        };
        self.odd |= place.replace(member.value).is_some();
    }

    fn decide(&self, kinds: &mut Kinds) -> Decision {
        if self.odd {
            return Decision::Look;
        }
        let Some(target) = target(self.target) else { return Decision::Look };
        let Some(verb) = plain(self.verb) else { return Decision::Look };
        let Some(received) = plain(self.received) else { return Decision::Look };
        decide(&target, verb, received, kinds)
    }
}

fn decide(target: &Target<'_>, verb: &[u8], received: &[u8], kinds: &mut Kinds) -> Decision {
    let look = match target.possible() {
        Possible::Never => false,
        Possible::Always => true,
        Possible::Write => kind::is_write(verb),
        Possible::Lease => kind::is_write(verb) && kind::is_sampled(received),
    };
    if look {
        return Decision::Look;
    }
    kinds.count(verb, target.resource, target.subresource);
    Decision::Irrelevant
}

impl Filter {
    /// Decides on one event's text.
    pub fn event(&mut self, json: &[u8]) -> Decision {
        let mut top = Top::default();
        let end = walk::members(json, walk::blank(json, 0), |member| top.take(member));
        match end {
            Some(end) if walk::blank(json, end) == json.len() => top.decide(&mut self.kinds),
            _ => Decision::Look,
        }
    }

    /// Decides on the event whose text begins at `at`; with the byte after its end. `None` for what is no object.
    fn event_at(&mut self, text: &[u8], at: usize) -> Option<(Decision, usize)> {
        let mut top = Top::default();
        let end = walk::members(text, at, |member| top.take(member))?;
        Some((top.decide(&mut self.kinds), end))
    }
}

/// The bytes of a string without escapes; none where there is no string or `null`, as the whole parse reads it. `None` for
/// everything else.
fn plain(value: Option<&[u8]>) -> Option<&[u8]> {
    match value {
        None | Some(b"null") => Some(b""),
        Some([b'"', text @ .., b'"']) if !text.contains(&b'\\') => Some(text),
        Some(_) => None,
    }
}

/// What an objectRef names; `None` where the whole parse must read it.
fn target(value: Option<&[u8]>) -> Option<Target<'_>> {
    let mut target = Target::default();
    let Some(value) = value.filter(|value| *value != b"null") else { return Some(target) };
    let (mut seen, mut odd) = (0_u8, false);
    let end = walk::members(value, 0, |Member { key, value, .. }| {
        let (place, bit) = match key {
            Some(b"resource") => (&mut target.resource, 1),
            Some(b"subresource") => (&mut target.subresource, 2),
            Some(b"apiGroup") => (&mut target.group, 4),
            Some(b"namespace") => (&mut target.namespace, 8),
            Some(b"name") => (&mut target.name, 16),
            None => {
                odd = true;
                return;
            }
            Some(_) => return,
        };
        match plain(Some(value)) {
            Some(text) => *place = text,
            None => odd = true,
        }
        odd |= seen & bit != 0;
        seen |= bit;
    })?;
    (!odd && end == value.len()).then_some(target)
}
