//! What really happens: who asks for what, and which process tree comes of it. The ground truth.

use crate::random::Random;
use crate::settings::Setting;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1000 * MS;
/// 2026-01-01, nanoseconds since 1970.
pub(crate) const BEGIN: u64 = 1_767_225_600 * SECOND;
pub(crate) const NODES: [&str; 2] = ["node-a", "node-b"];
const PODS: u64 = 4;

/// One access. Times are true ones; the clocks of the nodes may tell others.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) number: u64,
    pub(crate) pod: u64,
    /// Which pod of that name.
    pub(crate) incarnation: u64,
    /// `None`: nobody asked (`crictl exec` on the node).
    pub(crate) request: Option<Request>,
    /// `None`: denied, or accepted and nothing could be executed.
    pub(crate) tree: Option<Tree>,
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) user: String,
    pub(crate) audit_id: String,
    pub(crate) argv: Vec<String>,
    pub(crate) code: u32,
    pub(crate) received: u64,
    pub(crate) started: u64,
    pub(crate) completed: u64,
    pub(crate) uid: Option<String>,
    pub(crate) failed_open: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) entry: &'static str,
    pub(crate) pid: u32,
    /// On the boot clock, and so never the same for two processes.
    pub(crate) born: u64,
    pub(crate) environment: Vec<String>,
    /// When, which process of the tree (0: the root), what. The first is the root's own.
    pub(crate) starts: Vec<(u64, u32, Vec<String>)>,
    /// When which process ends.
    pub(crate) exits: Vec<(u64, u32)>,
}

impl Access {
    pub(crate) fn node(&self) -> usize {
        (self.pod % NODES.len() as u64) as usize
    }

    pub(crate) fn pod_name(&self) -> String {
        format!("web-{}", self.pod)
    }

    pub(crate) fn pod_uid(&self) -> String {
        format!("uid-{}-{}", self.pod, self.incarnation)
    }
}

/// Everything that happens in one run, in the order of its beginning in each pod.
pub(crate) fn happen(setting: &Setting) -> Vec<Access> {
    let mut random = Random::new(setting.seed);
    let mut accesses = Vec::new();
    let mut pids = 0;
    let mut known_uids: Vec<String> = Vec::new();
    for pod in 0..PODS {
        let mut at = BEGIN + 30 * SECOND;
        for in_pod in 0..setting.sessions / PODS {
            // Half of the sessions are over at once, the others last: 18 s on average.
            let apart = 18 * SECOND / setting.concurrent;
            at += random.between(0, 2 * apart) + 1;
            let number = accesses.len() as u64;
            let incarnation = if setting.reuse { in_pod / 20 } else { 0 };
            let same = random.chance(setting.identical);
            let argv = if same { strings(&["sh"]) } else { strings(&["sh", "-c", &format!("task {number}")]) };
            let lasts = if random.chance(50.0) {
                random.between(200 * MS, 4 * SECOND)
            } else {
                random.between(10 * SECOND, 60 * SECOND)
            };
            let denied = random.chance(3.0);
            let unasked = random.chance(3.0);
            let fails = random.chance(3.0);
            let marked = random.chance(setting.webhook);
            let started = at + random.between(5 * MS, 40 * MS);
            let mut request = Request {
                user: format!("user-{}", random.between(0, 40)),
                audit_id: random.uuid(),
                argv,
                code: if denied { 403 } else { 101 },
                received: at,
                started,
                completed: if denied { started } else { started + lasts },
                uid: (marked && !denied).then(|| random.uuid()),
                failed_open: !marked && setting.webhook > 0.0,
            };
            pids += 10;
            let pid = 1000 + if setting.reuse { pids % 300 } else { pids };
            let mut ran = request.argv.clone();
            let mut environment = Vec::new();
            let mut children_argv = strings(&["id"]);
            if random.chance(setting.spoofs) {
                let victim = known_uids.last().cloned().unwrap_or_else(|| random.uuid());
                let claim = format!("SPO_EXEC_REQUEST_UID={victim}");
                match random.between(0, 4) {
                    // Asks for what the webhook would have made of another's request. A webhook that works replaces it.
                    0 => {
                        let mut asked = vec!["env".to_owned(), claim.clone()];
                        asked.append(&mut request.argv);
                        request.argv = asked;
                        ran = request.argv.clone();
                        if let Some(uid) = &request.uid {
                            ran[1] = format!("SPO_EXEC_REQUEST_UID={uid}");
                        }
                    }
                    1 => environment.push(claim),
                    2 => children_argv = vec!["env".to_owned(), claim, "id".to_owned()],
                    // The client chooses the audit id, and may choose one that was used.
                    _ => request.audit_id = "00000000-0000-4000-8000-00000000c0de".to_owned(),
                }
            }
            if let Some(uid) = &request.uid
                && !ran.iter().any(|argument| argument.starts_with("SPO_EXEC_REQUEST_UID="))
            {
                let mut marked = vec!["env".to_owned(), format!("SPO_EXEC_REQUEST_UID={uid}")];
                marked.append(&mut ran);
                ran = marked;
            }
            known_uids.extend(request.uid.clone());
            let unasked = unasked && !same;
            let tree = (!denied && !fails).then(|| {
                let enters = started + random.between(50 * MS, 450 * MS).min(lasts.saturating_sub(1));
                let ends = started + lasts;
                let mut starts = vec![(enters, 0, ran)];
                let mut exits = Vec::new();
                for child in 1..=random.between(0, 5) as u32 {
                    let from = random.between(enters + 1, ends);
                    // Some are still there when the session has gone.
                    let to = if random.chance(3.0) { ends + 5 * SECOND } else { random.between(from, ends) };
                    starts.push((from, child, children_argv.clone()));
                    exits.push((to, child));
                }
                exits.push((ends, 0));
                Tree { entry: "exec", pid, born: enters - BEGIN, environment, starts, exits }
            });
            accesses.push(Access { number, pod, incarnation, request: (!unasked).then_some(request), tree });
        }
    }
    accesses
}

fn strings(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}
