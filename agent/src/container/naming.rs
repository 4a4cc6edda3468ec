//! Names are filled in, and secrets masked, between the pipeline's thread, which must not wait for a runtime, and the uplink.
//!
//! - A container is looked up when its cgroup is made, before anything runs in it; or when its first record comes.
//! - A batch waits for its containers' names a short while only. Records that go out without are noted, and an amendment
//!   follows when the names are known; after [`GIVE_UP`] they are counted as unresolved.
//! - Everything that is remembered has a bound.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use seclog_masking::Rules;
use seclog_proto::v1::{Amendment, Container, NodeRecord, node_record::Detail};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};

use super::{
    known::Known,
    lookup::{Answer, Lookup},
    names::Names,
};
use crate::{
    clock,
    drive::Captured,
    record::{Id, Origins},
    uplink::Batch,
};

/// How long a batch waits for names.
const WAIT: Duration = Duration::from_millis(200);
/// How long a container is looked for, unless told otherwise.
const GIVE_UP: Duration = Duration::from_secs(60);
/// After the runtime has failed, batches do not wait for it.
const BACK_OFF: Duration = Duration::from_secs(2);
/// Between two looks at one container: so long, and twice as long each time.
const RETRY: Duration = Duration::from_secs(1);
/// Containers looked up at once.
const MOST_FLIGHTS: usize = 64;
/// Containers that wait to be looked up.
const MOST_BACKLOG: usize = 8192;
/// Containers that records are waiting for, and those that were given up.
const MOST_PENDING: usize = 4096;
const MOST_GIVEN_UP: usize = 4096;
/// Ids of records that an amendment names; the rest is counted.
const MOST_IDS: usize = 64;

/// Names records, and amends those that went out without.
#[derive(Debug)]
pub struct Naming {
    lookup: Lookup,
    masking: Option<Rules>,
    names: Names,
    flights: JoinSet<(String, Answer)>,
    flying: HashSet<String>,
    backlog: VecDeque<String>,
    pending: HashMap<String, Pending>,
    given_up: HashMap<String, Instant>,
    /// The same, oldest first.
    given_up_order: VecDeque<String>,
    failing_until: Option<Instant>,
    /// How long a container is looked for.
    patience: Duration,
    /// Amendments that are to go out.
    late: Vec<NodeRecord>,
    counters: Counters,
}

/// Records of a container that went out without names.
#[derive(Debug)]
struct Pending {
    container: Container,
    record_ids: Vec<String>,
    not_listed: u64,
    why: String,
    since: Instant,
    next: Instant,
    wait: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Containers whose names became known.
    pub resolved: u64,
    /// Containers whose names never did.
    pub unresolved: u64,
    pub amendments: u64,
}

/// Takes batches from the pipeline until it ends, and hands them on with names. `made` tells of containers whose cgroup was
/// just made.
pub fn start(
    mut batches: mpsc::Receiver<Captured>,
    mut made: mpsc::Receiver<Arc<str>>,
    mut naming: Naming,
) -> mpsc::Receiver<Batch> {
    // What waits takes least room where it came in.
    let (sender, named) = mpsc::channel(1);
    tokio::spawn(async move {
        for id in naming.lookup.clone().ids().await {
            naming.want(&id);
        }
        let mut tick = interval(RETRY / 4);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut origins, mut watermark_unix_ns) = (None, 0);
        loop {
            tokio::select! {
                biased;
                Some(id) = made.recv() => naming.want(&id),
                Some(done) = naming.flights.join_next(), if !naming.flights.is_empty() => {
                    if let Ok((id, answer)) = done {
                        naming.landed(id, answer);
                    }
                }
                batch = batches.recv() => {
                    let Some(captured) = batch else { break };
                    let of = captured.origins.clone();
                    let mut batch = Batch::from(captured);
                    naming.mask(&mut batch.records);
                    naming.name(&mut batch.records).await;
                    naming.amend(&of, &mut batch.records);
                    watermark_unix_ns = batch.watermark_unix_ns;
                    if let Some(counters) = &mut batch.counters {
                        counters.extend(naming.counters());
                    }
                    origins = Some(of);
                    if sender.send(batch).await.is_err() {
                        return;
                    }
                }
                // An idle agent sleeps.
                _ = tick.tick(), if !naming.pending.is_empty() || !naming.given_up.is_empty() => naming.retry(),
            }
            if let Some(origins) = origins.as_ref().filter(|_| !naming.late.is_empty()) {
                let mut batch = Batch { watermark_unix_ns, ..Batch::default() };
                naming.amend(origins, &mut batch.records);
                if sender.send(batch).await.is_err() {
                    return;
                }
            }
        }
    });
    named
}

// === impl Naming ===

impl Naming {
    pub fn new(lookup: Lookup) -> Self {
        Self {
            lookup,
            masking: None,
            names: Names::default(),
            flights: JoinSet::new(),
            flying: HashSet::new(),
            backlog: VecDeque::new(),
            pending: HashMap::new(),
            given_up: HashMap::new(),
            given_up_order: VecDeque::new(),
            failing_until: None,
            patience: GIVE_UP,
            late: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Masks secrets in command lines by these rules, before anything of them is kept or sent.
    #[must_use]
    pub fn with_masking(self, masking: Option<Rules>) -> Self {
        Self { masking, ..self }
    }

    /// How long a container is looked for before it is counted as unresolved; default: a minute.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    fn mask(&self, records: &mut [NodeRecord]) {
        let Some(rules) = &self.masking else { return };
        for record in records {
            if let Some(Detail::ProcessStart(start)) = &mut record.detail {
                rules.mask(&mut start.argv);
            }
        }
    }

    /// Takes what is known of a container from elsewhere.
    pub fn remember(&mut self, id: &str, known: Known) {
        self.names.remember(id, known, std::time::Instant::now());
    }

    pub fn counts(&self) -> Counters {
        self.counters
    }

    fn counters(&self) -> [(&'static str, u64); 5] {
        let Counters { resolved, unresolved, amendments } = self.counters;
        [
            ("containers_resolved", resolved),
            ("containers_unresolved", unresolved),
            ("containers_pending", self.pending.len() as u64),
            ("containers_known", self.names.len() as u64),
            ("amendments", amendments),
        ]
    }

    /// A container that there is: it is looked up soon.
    pub fn want(&mut self, id: &str) {
        if self.names.get(id, std::time::Instant::now()).is_none()
            && !self.flying.contains(id)
            && self.lookup.can_ask()
            && self.backlog.len() < MOST_BACKLOG
        {
            self.backlog.push_back(id.to_owned());
            self.take_off();
        }
    }

    fn take_off(&mut self) {
        while self.flights.len() < MOST_FLIGHTS
            && let Some(id) = self.backlog.pop_front()
        {
            if self.flying.insert(id.clone()) {
                let answer = self.lookup.clone().ask(id.clone());
                self.flights.spawn(async move { (id, answer.await) });
            }
        }
    }

    fn landed(&mut self, id: String, answer: Answer) {
        self.flying.remove(&id);
        match answer {
            Answer::Known(known) => {
                let now = std::time::Instant::now();
                // Told of twice, it was looked up twice.
                self.counters.resolved += u64::from(self.names.get(&id, now).is_none());
                let known = self.names.remember(&id, *known, now);
                if let Some(pending) = self.pending.remove(&id) {
                    self.late.push(amendment(pending, &known));
                }
            }
            Answer::Nobody => self.note(&id, "the runtime does not know this container (any more)"),
            Answer::Failed(reason) => {
                if self.failing_until.is_none_or(|until| until < Instant::now()) {
                    tracing::warn!(reason, "container names are missing from records until the runtime answers");
                }
                self.failing_until = Some(Instant::now() + BACK_OFF);
                self.note(&id, &reason);
            }
        }
        self.take_off();
    }

    fn note(&mut self, id: &str, why: &str) {
        if let Some(pending) = self.pending.get_mut(id) {
            why.clone_into(&mut pending.why);
        }
    }

    /// Fills in the names of each record's container, as far as they come in time.
    pub async fn name(&mut self, records: &mut [NodeRecord]) {
        let now = std::time::Instant::now();
        let mut missing: HashSet<String> = HashSet::new();
        for container in records.iter().filter_map(|record| record.container.as_ref()) {
            if !container.id.is_empty()
                && !missing.contains(&container.id)
                && self.names.get(&container.id, now).is_none()
            {
                missing.insert(container.id.clone());
            }
        }
        let is_new = |id: &String| !self.pending.contains_key(id) && !self.is_given_up(id);
        let new: Vec<String> = missing.iter().filter(|id| is_new(id)).cloned().collect();
        new.iter().for_each(|id| self.want(id));
        let failing = self.failing_until.is_some_and(|until| Instant::now() < until);
        let deadline = Instant::now() + if failing { Duration::ZERO } else { WAIT };
        while new.iter().any(|id| self.flying.contains(id) || self.backlog.contains(id)) {
            let Ok(Some(done)) = timeout_at(deadline, self.flights.join_next()).await else { break };
            if let Ok((id, answer)) = done {
                self.landed(id, answer);
            }
        }
        for record in records {
            let Some(container) = record.container.as_ref().filter(|container| !container.id.is_empty()) else {
                continue;
            };
            match self.names.get(&container.id, now) {
                Some(known) => known.fill(record),
                None => self.without(record),
            }
        }
    }

    /// A record goes out without names.
    fn without(&mut self, record: &mut NodeRecord) {
        let NodeRecord { id: record_id, container: Some(container), .. } = record else { return };
        let id = container.id.clone();
        if !self.lookup.can_ask() {
            container.names = "unresolved: neither a CRI socket nor the runtime's state on disk is there".into();
            self.give_up(id);
            return;
        }
        if self.is_given_up(&id) {
            container.names = "unresolved: the runtime did not know this container".into();
            return;
        }
        if !self.pending.contains_key(&id) && self.pending.len() >= MOST_PENDING {
            container.names = "unresolved: too many containers are waiting for their names".into();
            self.give_up(id);
            return;
        }
        let now = Instant::now();
        let pending = self.pending.entry(id).or_insert_with(|| Pending {
            container: container.clone(),
            record_ids: Vec::new(),
            not_listed: 0,
            why: "the runtime has not answered yet".into(),
            since: now,
            next: now + RETRY,
            wait: RETRY,
        });
        container.names = format!("unresolved: {}", pending.why);
        if pending.record_ids.len() < MOST_IDS {
            pending.record_ids.push(record_id.clone());
        } else {
            pending.not_listed += 1;
        }
    }

    fn is_given_up(&self, id: &str) -> bool {
        self.given_up.contains_key(id)
    }

    fn give_up(&mut self, id: String) {
        if self.is_given_up(&id) {
            return;
        }
        self.counters.unresolved += 1;
        self.given_up.insert(id.clone(), Instant::now());
        self.given_up_order.push_back(id);
        if self.given_up_order.len() > MOST_GIVEN_UP {
            self.forget_given_up();
        }
    }

    fn forget_given_up(&mut self) {
        if let Some(id) = self.given_up_order.pop_front() {
            self.given_up.remove(&id);
        }
    }

    /// Looks again for what is not known yet, and gives up what will not be.
    fn retry(&mut self) {
        let now = Instant::now();
        let at = |naming: &Self| naming.given_up.get(naming.given_up_order.front()?).copied();
        while at(self).is_some_and(|at| now.duration_since(at) > self.patience * 10) {
            self.forget_given_up();
        }
        let over: Vec<String> = self
            .pending
            .iter()
            .filter(|(_, pending)| now.duration_since(pending.since) > self.patience)
            .map(|(id, _)| id.clone())
            .collect();
        for id in over {
            self.pending.remove(&id);
            self.give_up(id);
        }
        let mut due = Vec::new();
        for (id, pending) in self.pending.iter_mut().filter(|(_, pending)| pending.next <= now) {
            pending.next = now + pending.wait;
            pending.wait = (pending.wait * 2).min(self.patience / 4);
            due.push(id.clone());
        }
        due.iter().for_each(|id| self.want(id));
    }

    /// Puts the amendments that are due behind the records.
    fn amend(&mut self, origins: &Origins, records: &mut Vec<NodeRecord>) {
        for mut record in self.late.drain(..) {
            self.counters.amendments += 1;
            record.id = origins.id(Id::Own('n', self.counters.amendments));
            record.boot_id = origins.boot_id.to_string();
            records.push(record);
        }
    }
}

fn amendment(pending: Pending, known: &Known) -> NodeRecord {
    let Pending { mut container, record_ids, not_listed, .. } = pending;
    known.name(&mut container);
    // Of the container, not of one process in it.
    (container.mount_namespace, container.pid_namespace) = (0, 0);
    NodeRecord {
        time_unix_ns: clock::unix_ns(),
        time_boot_ns: clock::boot_ns(),
        container: Some(container),
        detail: Some(Detail::Amendment(Amendment {
            record_ids,
            not_listed,
            container_facts: Some(known.facts.clone()),
        })),
        ..NodeRecord::default()
    }
}
