//! Which pairs are forced: when every root came of one of the requests that fit it, and no request made two roots, which
//! request must have made which root?
//!
//! A pair is forced when it is in every assignment that gives each root a request of its own. From one such assignment
//! (augmenting paths) all others are reached by exchanges along alternating cycles and along alternating paths that end
//! in a request without root (Berge 1957); what neither touches is forced.

use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Forced {
    /// For each root the request that must have made it.
    pub(super) request: Vec<Option<usize>>,
    /// For each root the requests that made it in some assignment.
    pub(super) possible: Vec<Vec<usize>>,
}

/// `fits`: for each root the requests that fit it. `free`: roots that may have come of something that is not seen.
/// `None`: there is no assignment, so something is missing, and nothing can be concluded.
pub(super) fn forced(requests: usize, fits: &[Vec<usize>], free: &[bool]) -> Option<Forced> {
    // Something unseen, of its own, for each free root.
    let edges: Vec<Vec<usize>> = fits
        .iter()
        .zip(free)
        .enumerate()
        .map(|(root, (fits, free))| fits.iter().copied().chain(free.then_some(requests + root)).collect())
        .collect();
    let root_of = assign(requests + fits.len(), &edges)?;
    let mut request_of = vec![0; edges.len()];
    for (request, root) in root_of.iter().enumerate() {
        if let Some(root) = root {
            request_of[*root] = request;
        }
    }
    let exchanged = reaches_unused(&edges, &root_of);
    let cycle = cycles(&edges, &root_of);
    let mut forced = Forced { request: vec![None; edges.len()], possible: vec![Vec::new(); edges.len()] };
    for (root, edges) in edges.iter().enumerate() {
        let possible = edges.iter().copied().filter(|request| match root_of[*request] {
            None => true,
            Some(other) => other == root || exchanged[other] || cycle[other] == cycle[root],
        });
        forced.possible[root] = possible.filter(|request| *request < requests).collect();
        let alone = !exchanged[root] && cycle.iter().filter(|of| **of == cycle[root]).nth(1).is_none();
        let own = request_of[root];
        forced.request[root] = (alone && own < requests).then_some(own);
    }
    Some(forced)
}

/// For each request the root that it is given.
fn assign(requests: usize, edges: &[Vec<usize>]) -> Option<Vec<Option<usize>>> {
    let mut root_of: Vec<Option<usize>> = vec![None; requests];
    let mut tried = vec![usize::MAX; requests];
    for root in 0..edges.len() {
        // Breadth first: the way back to the root from each request that was reached.
        let mut from: Vec<(usize, usize)> = Vec::new();
        let mut queue = VecDeque::from([(root, usize::MAX)]);
        let mut found = None;
        'search: while let Some((at, came)) = queue.pop_front() {
            for &request in &edges[at] {
                if std::mem::replace(&mut tried[request], root) == root {
                    continue;
                }
                from.push((request, came));
                match root_of[request] {
                    None => {
                        found = Some(from.len() - 1);
                        break 'search;
                    }
                    Some(next) => queue.push_back((next, from.len() - 1)),
                }
            }
        }
        let mut at = found?;
        loop {
            let (request, came) = from[at];
            let Some(&(before, _)) = from.get(came) else {
                root_of[request] = Some(root);
                break;
            };
            root_of[request] = root_of[before];
            at = came;
        }
    }
    Some(root_of)
}

/// Roots that could give up their request: a chain of exchanges ends in a request without root.
fn reaches_unused(edges: &[Vec<usize>], root_of: &[Option<usize>]) -> Vec<bool> {
    // Who would like a root's request.
    let mut wanted_by: Vec<Vec<usize>> = vec![Vec::new(); edges.len()];
    let mut reaches = vec![false; edges.len()];
    let mut queue = VecDeque::new();
    for (root, edges) in edges.iter().enumerate() {
        for request in edges {
            match root_of[*request] {
                Some(other) if other != root => wanted_by[other].push(root),
                Some(_) => {}
                None if reaches[root] => {}
                None => {
                    reaches[root] = true;
                    queue.push_back(root);
                }
            }
        }
    }
    while let Some(root) = queue.pop_front() {
        for &other in &wanted_by[root] {
            if !std::mem::replace(&mut reaches[other], true) {
                queue.push_back(other);
            }
        }
    }
    reaches
}

/// For each root the number of its strongly connected component: whose request it could take in exchange for its own
/// (Tarjan 1972, without recursion).
fn cycles(edges: &[Vec<usize>], root_of: &[Option<usize>]) -> Vec<usize> {
    const NONE: usize = usize::MAX;
    let (mut index, mut low) = (vec![NONE; edges.len()], vec![NONE; edges.len()]);
    let mut component = vec![NONE; edges.len()];
    let (mut open, mut calls, mut visited, mut components) = (Vec::new(), Vec::new(), 0, 0);
    for start in 0..edges.len() {
        if index[start] == NONE {
            calls.push((start, 0));
        }
        while let Some((root, edge)) = calls.last_mut() {
            let root = *root;
            if index[root] == NONE {
                (index[root], low[root]) = (visited, visited);
                visited += 1;
                open.push(root);
            }
            if let Some(request) = edges[root].get(*edge) {
                *edge += 1;
                match root_of[*request] {
                    Some(other) if index[other] == NONE => calls.push((other, 0)),
                    Some(other) if component[other] == NONE => low[root] = low[root].min(index[other]),
                    _ => {}
                }
                continue;
            }
            calls.pop();
            if let Some((caller, _)) = calls.last() {
                low[*caller] = low[*caller].min(low[root]);
            }
            if low[root] == index[root] {
                while let Some(member) = open.pop() {
                    component[member] = components;
                    if member == root {
                        break;
                    }
                }
                components += 1;
            }
        }
    }
    component
}

#[cfg(test)]
mod tests {
    use super::forced;
    use proptest::prelude::*;

    /// Every assignment, one by one.
    fn assignments(requests: usize, fits: &[Vec<usize>], free: &[bool]) -> Vec<Vec<Option<usize>>> {
        let mut all = vec![Vec::new()];
        for (fits, free) in fits.iter().zip(free) {
            all = all
                .into_iter()
                .flat_map(|before: Vec<Option<usize>>| {
                    let choices = fits.iter().map(|request| Some(*request)).chain(free.then_some(None));
                    let fresh = choices.filter(|choice| choice.is_none() || !before.contains(choice));
                    fresh.map(|choice| before.iter().copied().chain([choice]).collect()).collect::<Vec<_>>()
                })
                .collect();
        }
        assert!(requests < 8);
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn forced_is_what_all_assignments_share(
            fits in proptest::collection::vec(proptest::collection::btree_set(0_usize..6, 0..4), 0..6),
            free: [bool; 6],
        ) {
            let fits: Vec<Vec<usize>> = fits.into_iter().map(|fits| fits.into_iter().collect()).collect();
            let free = &free[..fits.len()];
            let all = assignments(6, &fits, free);
            let found = forced(6, &fits, free);
            prop_assert_eq!(found.is_some(), !all.is_empty());
            if let Some(found) = found {
                for (root, edges) in fits.iter().enumerate() {
                    let said: std::collections::BTreeSet<Option<usize>> = all.iter().map(|one| one[root]).collect();
                    let only = if said.len() == 1 { said.first().copied().flatten() } else { None };
                    prop_assert_eq!(found.request[root], only);
                    let possible: Vec<usize> = edges.iter().copied().filter(|edge| said.contains(&Some(*edge))).collect();
                    prop_assert_eq!(&found.possible[root], &possible);
                }
            }
        }
    }
}
