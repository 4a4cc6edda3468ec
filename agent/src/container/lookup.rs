//! Asks for one container: first the runtime's state on disk, then its socket.

use std::sync::Arc;

use super::{cri::CriClient, known::Known, state::State};

/// Who can be asked. A copy asks the same.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    states: Arc<[State]>,
    client: Option<CriClient>,
    wanted: Arc<[String]>,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Known(Box<Known>),
    /// Nobody knows it (any more, or yet).
    Nobody,
    /// Somebody could not answer, and why.
    Failed(String),
}

// === impl Lookup ===

impl Lookup {
    /// `wanted`: environment variables whose values in a container's own environment are told.
    pub fn new(states: Vec<State>, client: Option<CriClient>, wanted: &[String]) -> Self {
        Self { states: states.into(), client, wanted: wanted.into() }
    }

    pub fn can_ask(&self) -> bool {
        self.client.is_some() || !self.states.is_empty()
    }

    pub fn client(&self) -> Option<&CriClient> {
        self.client.as_ref()
    }

    pub async fn ask(self, id: String) -> Answer {
        let mut failed = None;
        let (states, wanted) = (Arc::clone(&self.states), Arc::clone(&self.wanted));
        if !states.is_empty() {
            let id = id.clone();
            // Reads files.
            let read = tokio::task::spawn_blocking(move || read(&states, &id, &wanted)).await;
            match read.unwrap_or_else(|error| Answer::Failed(error.to_string())) {
                Answer::Nobody => {}
                Answer::Failed(reason) => failed = Some(reason),
                known @ Answer::Known(_) => return known,
            }
        }
        if let Some(mut client) = self.client {
            match client.container(&id, &self.wanted).await {
                Ok(Some(known)) => return Answer::Known(Box::new(known)),
                Ok(None) => {}
                Err(error) => failed = Some(error.to_string()),
            }
        }
        failed.map_or(Answer::Nobody, Answer::Failed)
    }

    /// Ids of the containers that are there now.
    pub async fn ids(self) -> Vec<String> {
        let states = Arc::clone(&self.states);
        let read = move || states.iter().flat_map(State::ids).collect::<Vec<_>>();
        let mut ids = tokio::task::spawn_blocking(read).await.unwrap_or_default();
        if let Some(mut client) = self.client {
            match client.ids().await {
                Ok(listed) => ids.extend(listed),
                Err(error) => tracing::warn!(%error, "the runtime's containers could not be listed"),
            }
        }
        ids
    }
}

fn read(states: &[State], id: &str, wanted: &[String]) -> Answer {
    let mut answer = Answer::Nobody;
    for state in states {
        match state.read(id, wanted) {
            Ok(Some(known)) => return Answer::Known(Box::new(known)),
            Ok(None) => {}
            Err(error) => answer = Answer::Failed(format!("{}: {error}", state.directory().display())),
        }
    }
    answer
}
