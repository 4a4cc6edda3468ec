//! Container ids to Kubernetes names, asked of the runtime once and remembered.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use seclog_proto::cri::{CriContainer, PodSandbox};

use super::cri::{CriClient, CriError};

/// Containers remembered, deleted ones among them.
const MOST: usize = 10_000;
/// After a failed answer the runtime is left alone for so long.
const BACK_OFF: Duration = Duration::from_secs(2);

/// What is known of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub pod_uid: String,
    pub pod_name: String,
    pub pod_namespace: String,
    pub name: String,
    pub image: String,
    /// `cri`, or `unresolved: <why>`.
    pub how: String,
}

/// Asks and remembers.
#[derive(Debug)]
pub struct Names {
    client: Option<CriClient>,
    known: HashMap<String, Arc<Known>>,
    order: VecDeque<String>,
    silent_until: Option<Instant>,
    last_error: String,
    pub resolved: u64,
    pub unresolved: u64,
}

// === impl Names ===

impl Names {
    /// Without a client every container stays unresolved, and says so.
    pub fn new(client: Option<CriClient>) -> Self {
        Self {
            client,
            known: HashMap::new(),
            order: VecDeque::new(),
            silent_until: None,
            last_error: String::new(),
            resolved: 0,
            unresolved: 0,
        }
    }

    /// The runtime's socket.
    pub fn socket(&self) -> Option<&std::path::Path> {
        self.client.as_ref().map(|client| client.path.as_path())
    }

    /// Learns every container that the runtime has now.
    pub async fn learn_all(&mut self) -> Result<usize, CriError> {
        let Some(client) = &mut self.client else { return Ok(0) };
        let (containers, sandboxes) = (client.containers(None).await?, client.sandboxes(None).await?);
        let found = containers.len() + sandboxes.len();
        for container in containers {
            self.remember(container.id.clone(), of_container(container));
        }
        for sandbox in sandboxes {
            self.remember(sandbox.id.clone(), of_sandbox(sandbox));
        }
        Ok(found)
    }

    /// The names of one container. An answer is remembered for good, a failure for a short while.
    pub async fn get(&mut self, id: &str) -> Arc<Known> {
        if let Some(known) = self.known.get(id) {
            return Arc::clone(known);
        }
        let Some(client) = &mut self.client else { return self.give_up("no CRI socket") };
        if self.silent_until.is_some_and(|until| Instant::now() < until) {
            let why = self.last_error.clone();
            return self.give_up(&why);
        }
        let answer = match client.containers(Some(id)).await {
            Ok(mut found) => match found.pop() {
                Some(container) => Ok(Some(of_container(container))),
                None => client.sandboxes(Some(id)).await.map(|mut found| found.pop().map(of_sandbox)),
            },
            Err(error) => Err(error),
        };
        match answer {
            Ok(Some(known)) => {
                self.resolved += 1;
                self.remember(id.to_owned(), known)
            }
            Ok(None) => self.give_up("the runtime does not know this container (any more)"),
            Err(error) => {
                self.last_error = error.to_string();
                self.silent_until = Some(Instant::now() + BACK_OFF);
                tracing::warn!(%error, "container names are missing from records until the runtime answers");
                self.give_up(&error.to_string())
            }
        }
    }

    fn give_up(&mut self, why: &str) -> Arc<Known> {
        self.unresolved += 1;
        Arc::new(Known { how: format!("unresolved: {why}"), ..Default::default() })
    }

    /// Takes what is known of a container from elsewhere.
    pub fn remember(&mut self, id: String, known: Known) -> Arc<Known> {
        let known = Arc::new(known);
        if self.known.insert(id.clone(), Arc::clone(&known)).is_none() {
            self.order.push_back(id);
            if self.order.len() > MOST
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
        known
    }
}

fn label(labels: &HashMap<String, String>, key: &str) -> String {
    labels.get(key).cloned().unwrap_or_default()
}

fn of_container(container: CriContainer) -> Known {
    let CriContainer { metadata, image, labels, .. } = container;
    Known {
        pod_uid: label(&labels, "io.kubernetes.pod.uid"),
        pod_name: label(&labels, "io.kubernetes.pod.name"),
        pod_namespace: label(&labels, "io.kubernetes.pod.namespace"),
        name: metadata.map(|metadata| metadata.name).unwrap_or_default(),
        image: image.map(|image| image.image).unwrap_or_default(),
        how: "cri".into(),
    }
}

/// A sandbox's own process goes by the name that kubelet's docker shim gave it, and CRI-O still does.
fn of_sandbox(sandbox: PodSandbox) -> Known {
    let metadata = sandbox.metadata.unwrap_or_default();
    Known {
        pod_uid: metadata.uid,
        pod_name: metadata.name,
        pod_namespace: metadata.namespace,
        name: "POD".into(),
        image: String::new(),
        how: "cri".into(),
    }
}
