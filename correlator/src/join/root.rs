//! The node's side: one session root with everything that descends from it. Membership is by the root that the record
//! names, never by time. Merging is commutative and idempotent but for the caps, which are counted.

use super::Config;
use super::attic::Slot;
use super::deeds::{self, Deeds, Start};
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{self, NodeRecord};
use std::cell::OnceCell;
use std::cmp::Ordering;
use std::sync::{Arc, LazyLock};
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RootKey {
    pub(super) node: Arc<str>,
    pub(super) boot_id: Arc<str>,
    pub(super) start_boottime_ns: u64,
    pub(super) pid: u32,
}

impl Ord for RootKey {
    /// Numbers first: most keys that are compared are of one node and boot.
    fn cmp(&self, other: &Self) -> Ordering {
        let texts = || (&self.node, &self.boot_id).cmp(&(&other.node, &other.boot_id));
        (self.start_boottime_ns, self.pid).cmp(&(other.start_boottime_ns, other.pid)).then_with(texts)
    }
}

impl PartialOrd for RootKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What of a root's description could differ between its records; the least one stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// False sorts first: the root's own exec knows best.
    not_of_root: bool,
    pub(super) how: String,
    pub(super) rule: String,
    pub(super) lineage: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Container {
    /// False sorts first.
    not_named: bool,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) name: String,
    pub(super) pod_uid: String,
    pub(super) id: String,
    pub(super) names: String,
}

/// The first exec in the container, where its record came.
#[derive(Debug)]
struct First {
    time: u64,
    id: Box<str>,
    start: Start,
}

/// Where deeds are that are not in memory.
#[derive(Debug, Clone, Copy)]
struct Away {
    slot: Slot,
    /// Programs that they list.
    listed: u64,
}

static NO_DEEDS: LazyLock<Deeds> = LazyLock::new(Deeds::default);

#[derive(Debug)]
pub(super) struct Root {
    /// Of the session that it would be alone.
    pub(super) id: Uuid,
    pub(super) key: Arc<RootKey>,
    pub(super) entry: Entry,
    /// In the order of container ids: descriptions of the same container, the best of each.
    containers: Vec<Container>,
    /// The container of the root's own exec.
    own_container: Option<Box<str>>,
    first: Option<Box<First>>,
    /// None where nothing was done, or where they are away.
    deeds: Option<Box<Deeds>>,
    away: Option<Away>,
    /// What is away, while it is told of.
    lent: OnceCell<Box<Deeds>>,
    /// What its container was started with, where the node knows it.
    facts: Option<Box<v1::ContainerFacts>>,
    /// A verdict came, and one of a program that was executed.
    pub(super) has_verdicts: (bool, bool),
    /// How many of its processes have started and not exited.
    running: usize,
    pub(super) exit: Option<(u64, i32)>,
    pub(super) first_seen: u64,
    pub(super) last_seen: u64,
    /// The join's `now` when the last, and the first, of it came.
    pub(super) arrived: u64,
    first_arrived: Option<u64>,
    /// How many records it has had.
    pub(super) version: u64,
    /// How often something changed that decides which requests it fits.
    pub(super) face: u64,
    /// A request that fits it was let go while nothing was asserted of it.
    pub(super) lost_candidates: bool,
    /// Its story is told or of no interest: only identity is kept, news are counted.
    pub(super) retired: bool,
}

impl Root {
    pub(super) fn new(id: Uuid, key: Arc<RootKey>) -> Self {
        Self {
            id,
            key,
            // Greater than any real one.
            entry: Entry {
                not_of_root: true,
                how: "\u{10ffff}".to_owned(),
                rule: String::new(),
                lineage: String::new(),
            },
            containers: Vec::new(),
            own_container: None,
            first: None,
            deeds: None,
            away: None,
            lent: OnceCell::new(),
            facts: None,
            has_verdicts: (false, false),
            running: 0,
            exit: None,
            first_seen: u64::MAX,
            last_seen: 0,
            arrived: 0,
            first_arrived: None,
            version: 0,
            face: 0,
            lost_candidates: false,
            retired: false,
        }
    }

    pub(super) fn add(&mut self, record: NodeRecord, config: &Config, now: u64) {
        let is_root_exec = matches!(&record.detail, Some(Detail::ProcessStart(start)) if start.is_session_root);
        if is_root_exec || record.time_unix_ns < self.first_seen {
            self.face += 1;
        }
        self.first_seen = self.first_seen.min(record.time_unix_ns);
        self.last_seen = self.last_seen.max(record.time_unix_ns);
        self.arrived = self.arrived.max(now);
        self.first_arrived.get_or_insert(now);
        self.version += 1;
        if let Some(root) = record.session_root {
            let said = Entry { not_of_root: !is_root_exec, how: root.entry, rule: root.rule, lineage: root.lineage };
            if said < self.entry {
                self.face += 1;
                self.entry = said;
            }
        }
        if let Some(container) = record.container {
            self.add_container(container, is_root_exec, config);
        }
        let process = (record.start_boottime_ns, record.pid);
        let is_root_process = process == (self.key.start_boottime_ns, self.key.pid);
        match record.detail {
            Some(Detail::ProcessStart(mut program)) => {
                if let Some(facts) = program.container_facts.take() {
                    self.add_facts(*facts);
                }
                let (time, entered) = (record.time_unix_ns, std::mem::take(&mut program.entered_container_id));
                let start = Start::new(process, record.uid, record.comm, program);
                let deeds = self.deeds_mut();
                if !entered.is_empty() {
                    deeds.add_entered(&entered, time, &record.id, config);
                }
                let began = deeds.add_start(time, &record.id, &start, config);
                self.running += usize::from(began);
                let earlier = |first: &First| (time, record.id.as_str()) < (first.time, &first.id);
                if start.is_session_root && self.first.as_deref().is_none_or(earlier) {
                    self.first = Some(Box::new(First { time, id: record.id.into(), start }));
                }
            }
            Some(Detail::ProcessExit(exit)) => {
                let ended = self.deeds_mut().add_exit(process, config);
                self.running = self.running.saturating_sub(usize::from(ended));
                if is_root_process {
                    let said = (record.time_unix_ns, exit.exit_code);
                    // Whoever attached to a main process tells of its end.
                    self.face += u64::from(self.entry.how == "start");
                    self.exit = Some(self.exit.map_or(said, |known| known.min(said)));
                }
            }
            Some(Detail::Verdict(verdict)) => {
                self.has_verdicts = (true, self.has_verdicts.1 || deeds::is_of_executed(&verdict));
                self.deeds_mut().add_verdict(&record.id, process, &verdict, config);
            }
            Some(Detail::CgroupMove(moved)) => {
                self.deeds_mut().add_move(record.id, record.time_unix_ns, record.pid, moved, config);
            }
            Some(Detail::Loss(_) | Detail::VerdictCount(_) | Detail::Amendment(_)) | None => {}
        }
    }

    /// Empty while they are away, but for the time in which they are told of.
    pub(super) fn deeds(&self) -> &Deeds {
        self.deeds.as_deref().or_else(|| self.lent.get().map(|deeds| &**deeds)).unwrap_or(&NO_DEEDS)
    }

    /// Whoever adds to them has brought them back.
    fn deeds_mut(&mut self) -> &mut Deeds {
        self.deeds.get_or_insert_default()
    }

    /// Bytes of them that memory holds for good, near enough.
    pub(super) fn deed_bytes(&self) -> usize {
        self.deeds.as_deref().map_or(0, Deeds::bytes)
    }

    pub(super) fn slot(&self) -> Option<Slot> {
        self.away.map(|away| away.slot)
    }

    pub(super) fn went_to(&mut self, slot: Slot) {
        self.away = Some(Away { slot, listed: self.deeds().len() as u64 });
        self.deeds = None;
    }

    /// What is away can be read until [`Root::give_back`]. `None`: it is lost, and what it listed is counted.
    pub(super) fn lend(&self, deeds: Option<Deeds>) {
        let lost = || Deeds::lost(self.away.map_or(0, |away| away.listed));
        self.lent.get_or_init(|| Box::new(deeds.unwrap_or_else(lost)));
    }

    pub(super) fn give_back(&mut self) {
        self.lent.take();
    }

    /// What was lent stays.
    pub(super) fn came_back(&mut self) {
        self.away = None;
        self.deeds = self.lent.take();
        self.deeds_mut().weigh();
    }

    pub(super) fn cut(&mut self) {
        self.deeds_mut().cut();
    }

    /// The node says the same of a container as often as it says it; of two that differ the first stands.
    pub(super) fn add_facts(&mut self, facts: v1::ContainerFacts) {
        if self.facts.is_none() {
            self.facts = Some(Box::new(facts));
            self.face += 1;
            self.version += 1;
        }
    }

    pub(super) fn facts(&self) -> Option<&v1::ContainerFacts> {
        self.facts.as_deref()
    }

    /// The value is one that the container's own environment has: every exec inherits it, so it identifies none.
    pub(super) fn is_own_value(&self, value: &str) -> bool {
        let own = self.facts.iter().flat_map(|facts| &facts.own_environment);
        own.filter_map(|variable| variable.split_once('=')).any(|(_, own)| own == value)
    }

    pub(super) fn add_container(&mut self, container: v1::Container, is_root_exec: bool, config: &Config) {
        self.version += 1;
        let said = Container {
            not_named: container.pod_name.is_empty(),
            namespace: container.pod_namespace,
            pod: container.pod_name,
            name: container.name,
            pod_uid: container.pod_uid,
            id: container.id,
            names: container.names,
        };
        if is_root_exec {
            self.face += 1;
            if self.own_container.as_deref().is_none_or(|own| *said.id < *own) {
                self.own_container = Some(said.id.as_str().into());
            }
        }
        match self.containers.binary_search_by(|known| known.id.cmp(&said.id)) {
            Ok(at) => match self.containers.get_mut(at) {
                Some(known) if said < *known => *known = said,
                _ => return,
            },
            Err(_) if self.containers.len() >= config.containers_per_root && !is_root_exec => return,
            Err(at) => self.containers.insert(at, said),
        }
        self.face += 1;
    }

    pub(super) fn container(&self) -> Option<&Container> {
        let own = self.own_container.as_deref().and_then(|id| self.of_id(id));
        own.or_else(|| self.containers.iter().min())
    }

    fn of_id(&self, id: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.id == id)
    }

    /// Processes of it were seen in more than one container.
    pub(super) fn other_containers(&self) -> impl Iterator<Item = &Container> {
        let own = self.container().map(|container| container.id.clone());
        self.containers.iter().filter(move |container| Some(&container.id) != own.as_ref())
    }

    /// The first exec in the container, where its record came.
    pub(super) fn first_exec(&self) -> Option<(u64, &Start)> {
        self.first.as_deref().map(|first| (first.time, &first.start))
    }

    /// When it entered, as well as is known.
    pub(super) fn entered(&self) -> u64 {
        self.first_exec().map_or(self.first_seen, |(time, _)| time)
    }

    pub(super) fn first_arrival(&self) -> u64 {
        self.first_arrived.unwrap_or_default()
    }

    /// A process whose start is kept has not exited.
    pub(super) fn is_running(&self) -> bool {
        self.running > 0
    }

    pub(super) fn has_container(&self, id: &str) -> bool {
        self.of_id(id).is_some()
    }

    pub(super) fn container_ids(&self) -> impl Iterator<Item = &String> {
        self.containers.iter().map(|container| &container.id)
    }

    /// Keeps identity and what is alive, lets the story go.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        self.trim();
    }

    pub(super) fn trim(&mut self) {
        let own = (self.key.start_boottime_ns, self.key.pid);
        self.running = self.deeds_mut().trim(own);
    }
}
