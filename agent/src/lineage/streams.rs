//! Exec told from ExecSync below containerd's shim, which serves both alike.
//!
//! For an Exec the kubelet connects to the streaming port of the process that serves the CRI, and the exec begins because of
//! that connection; an ExecSync needs none. So an exec before which nobody connected is an ExecSync. One before which
//! somebody did may be either: a connection can also be another exec's, a port forward's or an attachment's. One that has been
//! made for an exec that is known to be an Exec (it has a console) is no other's.
//!
//! What is said rests on knowing every connection. Where one may have gone by unseen, nothing is said.

use std::{fmt, path::PathBuf};

use super::{listening::Listening, processes::ProcessKey};
use crate::clock;

/// How long after its connection an exec can begin, nanoseconds. containerd forgets a request 60 s after it was made and gives
/// a client 30 s to open its streams (k8s.io/kubelet/pkg/cri/streaming); the rest is for a node that has no time.
const WINDOW_NS: u64 = 120_000_000_000;
/// The same for a connection that is gone already when the counting begins: its request was read, and its exec is under way.
const GONE_NS: u64 = 10_000_000_000;

/// Counts connections to the ports of one process.
pub trait ConnectionCount: fmt::Debug + Send {
    /// Connections to these ports are counted from now on; `None`: to none.
    ///
    /// # Errors
    /// Why they are not.
    fn count_at(&mut self, listening: Option<&Listening>) -> Result<(), String>;

    /// What was counted; `None` when it cannot be read.
    fn counted(&mut self) -> Option<Counted>;
}

/// Connections so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The latest ones of each CPU, oldest first.
    pub latest: Vec<Connection>,
    /// No connection after this time is missing in `latest`; 0: none at all.
    pub whole_since_boot_ns: u64,
    /// When a socket of that network namespace last began to listen.
    pub listened_boot_ns: u64,
    /// Times that the count did not run.
    pub missed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub cpu: u32,
    /// On its CPU.
    pub number: u64,
    pub time_boot_ns: u64,
}

/// What the connections tell of one exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nobody connected for it.
    Synchronous,
    /// Somebody connected who may have asked for it.
    Connected,
    /// Not known.
    Nothing,
}

/// The connections of the process that serves the CRI.
#[derive(Debug)]
pub struct Streams {
    count: Box<dyn ConnectionCount>,
    proc: PathBuf,
    watched: Option<Watched>,
    /// Those that known Execs were asked for by.
    taken: Vec<Connection>,
}

#[derive(Debug)]
struct Watched {
    service: ProcessKey,
    listening: Listening,
    /// The ports were looked up at this time.
    read_boot_ns: u64,
    /// What happened before this time is not known.
    since_boot_ns: u64,
    missed: u64,
    /// An Exec came for which nobody connected: its streams come by another way.
    in_doubt: bool,
}

// === impl Streams ===

impl Streams {
    pub fn new(count: Box<dyn ConnectionCount>, proc: PathBuf) -> Self {
        Self { count, proc, watched: None, taken: Vec::new() }
    }

    /// Counts at the ports of this process from now on.
    pub(super) fn watch(&mut self, service: Option<ProcessKey>) {
        let missed = self.count.counted().map_or(0, |counted| counted.missed);
        self.watch_anew(service, missed);
    }

    /// The exact start of a process has become known: it is the same one.
    pub(super) fn refine(&mut self, known: ProcessKey, exact: ProcessKey) {
        if let Some(watched) = self.watched.as_mut().filter(|watched| watched.service == known) {
            watched.service = exact;
        }
    }

    /// What is known of an exec that the runtime began at `asked_boot_ns`. `is_exec`: it is known to be no ExecSync.
    pub(super) fn tell(&mut self, service: Option<ProcessKey>, asked_boot_ns: u64, is_exec: bool) -> Told {
        let Some(counted) = self.count.counted() else { return Told::Nothing };
        let is_same = self.watched.as_ref().is_some_and(|watched| {
            Some(watched.service) == service
                && watched.read_boot_ns > counted.listened_boot_ns
                && watched.missed == counted.missed
        });
        if !is_same {
            self.watch_anew(service, counted.missed);
        }
        let from = asked_boot_ns.saturating_sub(WINDOW_NS);
        let Some(watched) = &mut self.watched else { return Told::Nothing };
        if watched.in_doubt || from < watched.since_boot_ns || from < counted.whole_since_boot_ns {
            return Told::Nothing;
        }
        let in_window = |connection: &Connection| (from..=asked_boot_ns).contains(&connection.time_boot_ns);
        self.taken.retain(|connection| counted.latest.contains(connection));
        let mut free = counted
            .latest
            .iter()
            .filter(|connection| in_window(connection))
            .filter(|connection| !self.taken.contains(connection));
        match (free.next().copied(), free.next()) {
            (None, _) if is_exec => {
                watched.in_doubt = true;
                tracing::warn!(
                    ports = ?watched.listening.ports,
                    "an Exec came by no connection to the ports of the process that serves the CRI: execs without a console are \
                     not told from ExecSync until it is started anew"
                );
                Told::Nothing
            }
            (None, _) => Told::Synchronous,
            (Some(only), None) if is_exec => {
                self.taken.push(only);
                Told::Connected
            }
            (Some(_), _) => Told::Connected,
        }
    }

    fn watch_anew(&mut self, service: Option<ProcessKey>, missed: u64) {
        let read_boot_ns = clock::boot_ns();
        let before = self.watched.take();
        let Some((service, listening)) = service.and_then(|key| Some((key, Listening::of(&self.proc, key.pid)?)))
        else {
            if before.is_some() {
                let _ = self.count.count_at(None);
            }
            return;
        };
        let is_known = before.filter(|before| before.service == service && before.listening.is_same(&listening));
        if let Some(before) = is_known {
            let since_boot_ns = if before.missed == missed { before.since_boot_ns } else { read_boot_ns };
            self.watched = Some(Watched { read_boot_ns, since_boot_ns, missed, ..before });
            return;
        }
        if let Err(error) = self.count.count_at(Some(&listening)) {
            tracing::debug!(error, "connections are not counted");
            return;
        }
        // Again, now that every new one is counted: what is there has come before.
        let since_boot_ns = clock::boot_ns();
        let Some(listening) = Listening::of(&self.proc, service.pid).filter(|again| again.is_same(&listening)) else {
            return;
        };
        let since_boot_ns =
            if listening.is_idle { (since_boot_ns + GONE_NS).saturating_sub(WINDOW_NS) } else { since_boot_ns };
        tracing::info!(ports = ?listening.ports, "connections for streams are counted at these ports");
        self.watched = Some(Watched { service, listening, read_boot_ns, since_boot_ns, missed, in_doubt: false });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        os::unix::fs::symlink,
        path::Path,
        sync::{Arc, Mutex, PoisonError},
    };

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Counts what the test says.
    #[derive(Clone, Debug, Default)]
    pub(in crate::lineage) struct Told(Arc<Mutex<(Counted, Option<Listening>)>>);

    impl Told {
        fn with<T>(&self, work: impl FnOnce(&mut Counted) -> T) -> T {
            work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).0)
        }

        fn connect(&self, time_boot_ns: u64) {
            self.with(|counted| {
                let number = counted.latest.len() as u64;
                counted.latest.push(Connection { cpu: 0, number, time_boot_ns });
            });
        }

        fn ports(&self) -> Option<Vec<u16>> {
            self.0.lock().unwrap().1.as_ref().map(|listening| listening.ports.clone())
        }
    }

    impl ConnectionCount for Told {
        fn count_at(&mut self, listening: Option<&Listening>) -> Result<(), String> {
            self.0.lock().unwrap().1 = listening.cloned();
            Ok(())
        }

        fn counted(&mut self) -> Option<Counted> {
            Some(self.with(|counted| counted.clone()))
        }
    }

    /// A /proc with one process that listens.
    fn process(proc: &Path, pid: u32, port: u16, more: &str) {
        let directory = proc.join(pid.to_string());
        for name in ["ns", "fd", "net"] {
            std::fs::create_dir_all(directory.join(name)).unwrap();
        }
        if !directory.join("fd/3").is_symlink() {
            symlink("net:[4026531840]", directory.join("ns/net")).unwrap();
            symlink("socket:[77]", directory.join("fd/3")).unwrap();
        }
        let table = format!("sl\n 0: 0100007F:{port:04X} 00000000:0000 0A 0:0 00:0 0 0 0 77 1\n{more}");
        std::fs::write(directory.join("net/tcp"), table).unwrap();
    }

    pub(in crate::lineage) const SERVICE: ProcessKey = ProcessKey { pid: 50, start_boottime_ns: 5 };

    /// Of a service to which nobody was connected, and a time at which everything is known.
    pub(in crate::lineage) fn streams() -> (tempfile::TempDir, Told, Streams, u64) {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), SERVICE.pid, 4_000, "");
        let told = Told::default();
        let mut streams = Streams::new(Box::new(told.clone()), proc.path().into());
        streams.watch(Some(SERVICE));
        assert_eq!(told.ports(), Some(vec![4_000]));
        (proc, told, streams, clock::boot_ns() + 500 * SECOND)
    }

    pub(in crate::lineage) fn watched(streams: &Streams) -> Option<ProcessKey> {
        streams.watched.as_ref().map(|watched| watched.service)
    }

    use super::Told as Answer;

    #[test]
    fn an_exec_before_which_nobody_connected_is_synchronous_and_after_a_connection_it_is_either() {
        let (_proc, told, mut streams, now) = streams();
        assert_eq!(streams.tell(Some(SERVICE), now, false), Answer::Synchronous);
        told.connect(now + SECOND);
        assert_eq!(streams.tell(Some(SERVICE), now, false), Answer::Synchronous, "the connection came later");
        assert_eq!(streams.tell(Some(SERVICE), now + 2 * SECOND, false), Answer::Connected);
        assert_eq!(streams.tell(Some(SERVICE), now + SECOND + WINDOW_NS + 1, false), Answer::Synchronous);
    }

    #[test]
    fn a_connection_that_an_exec_with_a_console_came_by_is_no_others() {
        let (_proc, told, mut streams, now) = streams();
        told.connect(now);
        assert_eq!(streams.tell(Some(SERVICE), now + SECOND, true), Answer::Connected);
        assert_eq!(streams.tell(Some(SERVICE), now + 2 * SECOND, false), Answer::Synchronous);
        // Of two it is not known which one is whose.
        told.connect(now + 3 * SECOND);
        told.connect(now + 3 * SECOND);
        assert_eq!(streams.tell(Some(SERVICE), now + 4 * SECOND, true), Answer::Connected);
        assert_eq!(streams.tell(Some(SERVICE), now + 5 * SECOND, false), Answer::Connected);
    }

    #[test]
    fn where_an_exec_with_a_console_came_without_a_connection_nothing_is_told_any_more() {
        let (proc, _told, mut streams, now) = streams();
        assert_eq!(streams.tell(Some(SERVICE), now, true), Answer::Nothing);
        assert_eq!(streams.tell(Some(SERVICE), now + SECOND, false), Answer::Nothing);
        let next = ProcessKey { pid: 51, ..SERVICE };
        process(proc.path(), next.pid, 4_001, "");
        assert_eq!(streams.tell(Some(next), clock::boot_ns() + 500 * SECOND, false), Answer::Synchronous);
    }

    #[test]
    fn nothing_is_told_of_execs_whose_connection_can_have_come_before_the_count_began() {
        let (proc, _told, mut streams, _) = streams();
        let now = clock::boot_ns();
        assert_eq!(streams.tell(Some(SERVICE), now + SECOND, false), Answer::Nothing);
        assert_eq!(streams.tell(Some(SERVICE), now + GONE_NS + SECOND, false), Answer::Synchronous);
        // Somebody is connected: for which exec, and since when, is not known.
        let connected = " 1: 0100007F:0FA0 0100007F:9000 01 0:0 00:0 0 0 0 78 1\n";
        process(proc.path(), SERVICE.pid, 4_000, connected);
        let mut streams = Streams::new(Box::new(Told::default()), proc.path().into());
        streams.watch(Some(SERVICE));
        assert_eq!(streams.tell(Some(SERVICE), now + GONE_NS + SECOND, false), Answer::Nothing);
        assert_eq!(streams.tell(Some(SERVICE), now + WINDOW_NS + 10 * SECOND, false), Answer::Synchronous);
    }

    #[test]
    fn a_service_that_listens_elsewhere_is_followed_there_and_what_came_between_is_not_told() {
        let (proc, told, mut streams, now) = streams();
        process(proc.path(), SERVICE.pid, 4_002, "");
        told.with(|counted| counted.listened_boot_ns = clock::boot_ns());
        assert_eq!(streams.tell(Some(SERVICE), clock::boot_ns(), false), Answer::Nothing);
        assert_eq!(told.ports(), Some(vec![4_002]));
        assert_eq!(streams.tell(Some(SERVICE), now, false), Answer::Synchronous);
        // Another socket of the host began to listen, which changes nothing.
        told.with(|counted| counted.listened_boot_ns = clock::boot_ns());
        assert_eq!(streams.tell(Some(SERVICE), now, false), Answer::Synchronous);
    }

    #[test]
    fn nothing_is_told_without_a_service_or_where_connections_are_missing() {
        let (_proc, told, mut streams, now) = streams();
        assert_eq!(streams.tell(None, now, false), Answer::Nothing);
        assert_eq!(told.ports(), None);
        assert_eq!(streams.tell(Some(ProcessKey { pid: 99, ..SERVICE }), now, false), Answer::Nothing, "not in /proc");
        assert_eq!(streams.tell(Some(SERVICE), now, false), Answer::Synchronous);
        told.with(|counted| counted.whole_since_boot_ns = now - SECOND);
        assert_eq!(streams.tell(Some(SERVICE), now, false), Answer::Nothing);
        told.with(|counted| (counted.whole_since_boot_ns, counted.missed) = (0, 1));
        assert_eq!(streams.tell(Some(SERVICE), clock::boot_ns(), false), Answer::Nothing);
    }
}
