//! How changes become a transaction. Pure.

use std::collections::{BTreeMap, BTreeSet};

use model::registry::RegistryChange;

use super::tree::{Leaf, Tree};

/// Most changes in one transaction.
const MAX_CHANGES: usize = 1_000;
/// Most bytes in one transaction, roughly: half of the 512 KiB promised, a quarter of what a server takes.
const MAX_BYTES: usize = 256 * 1024;

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// A new node.
    Create(String, Vec<u8>),
    /// New data of a node.
    Set(String, Vec<u8>),
    /// A node to remove.
    Delete(String),
}

/// A node that is there.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) data: Vec<u8>,
    pub(super) children: i32,
}

/// Cuts `changes` into transactions, in order. A removal and a put of one app that stand side by side stay together.
pub(super) fn batches(changes: &[RegistryChange]) -> Vec<&[RegistryChange]> {
    let mut batches = Vec::new();
    let (mut start, mut at, mut bytes) = (0, 0, 0);
    while at < changes.len() {
        let unit = if changes[at..].len() > 1 && replaces(&changes[at], &changes[at + 1]) {
            2
        } else {
            1
        };
        let weight: usize = changes[at..at + unit].iter().map(weight).sum();
        if at > start && (at + unit - start > MAX_CHANGES || bytes + weight > MAX_BYTES) {
            batches.push(&changes[start..at]);
            (start, bytes) = (at, 0);
        }
        at += unit;
        bytes += weight;
    }
    if start < changes.len() {
        batches.push(&changes[start..]);
    }
    batches
}

fn replaces(a: &RegistryChange, b: &RegistryChange) -> bool {
    match (a, b) {
        (RegistryChange::Put(a, _), RegistryChange::Remove(b))
        | (RegistryChange::Remove(a), RegistryChange::Put(b, _)) => a.app == b.app,
        _ => false,
    }
}

/// An upper bound of what a change takes in a request, parents included.
fn weight(change: &RegistryChange) -> usize {
    match change {
        RegistryChange::Put(key, _) | RegistryChange::Remove(key) => {
            let names = key.app.as_str().len() + key.version.as_str().len() + key.container.as_str().len();
            3 * (names + 400)
        }
        RegistryChange::Config(_, config) => 500 + encode(config).len(),
        RegistryChange::ConfigRemove(_) => 500,
        RegistryChange::Load(key, _) | RegistryChange::LoadRemove(key) => {
            2 * (key.app.as_str().len() + key.container.as_str().len() + 400)
        }
        // Escaped as JSON, the ends of the chain's lines take two bytes.
        RegistryChange::Certificate(_, sealed) => {
            let challenge = sealed.challenge.as_ref().map_or(0, |c| c.len());
            1_000 + sealed.chain.len() / 60 * 62 + sealed.key.len() + challenge
        }
        RegistryChange::CertificateRemove(_) => 500,
    }
}

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("it has only text keys and no map that could fail")
}

/// What is to be at each leaf after `changes`: the last word on each counts.
fn wanted(changes: &[RegistryChange]) -> BTreeMap<Leaf, Option<Vec<u8>>> {
    let each = changes.iter().map(|change| match change {
        RegistryChange::Put(key, endpoint) => (Leaf::Endpoint(key.clone()), Some(endpoint.to_string().into_bytes())),
        RegistryChange::Remove(key) => (Leaf::Endpoint(key.clone()), None),
        RegistryChange::Config(app, config) => (Leaf::Config(app.clone()), Some(encode(config))),
        RegistryChange::ConfigRemove(app) => (Leaf::Config(app.clone()), None),
        RegistryChange::Load(key, load) => (Leaf::Load(key.clone()), Some(encode(load))),
        RegistryChange::LoadRemove(key) => (Leaf::Load(key.clone()), None),
        RegistryChange::Certificate(name, sealed) => (Leaf::Certificate(name.clone()), Some(encode(sealed))),
        RegistryChange::CertificateRemove(name) => (Leaf::Certificate(name.clone()), None),
    });
    each.collect()
}

/// The paths that must be known to plan `changes`.
pub(super) fn needed(tree: &Tree, changes: &[RegistryChange]) -> Vec<String> {
    let mut paths = BTreeSet::new();
    for leaf in wanted(changes).keys() {
        paths.insert(tree.leaf(leaf));
        paths.extend(tree.parents(leaf));
    }
    paths.into_iter().collect()
}

/// The steps that make `changes` true where `nodes` are what is there of the [`needed`] paths: what is new before what
/// goes, so that whoever sees the steps one by one never sees an app without the endpoint that replaces another.
/// Parents are made when missing and removed when empty.
pub(super) fn plan(tree: &Tree, changes: &[RegistryChange], nodes: &BTreeMap<String, Node>) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut removals = Vec::new();
    // Children of the parents, as the steps leave them.
    let mut children: BTreeMap<String, i32> = nodes.iter().map(|(p, n)| (p.clone(), n.children)).collect();
    // Parents of what goes, each with those above it, the outermost first.
    let mut maybe_empty: BTreeSet<Vec<String>> = BTreeSet::new();
    for (leaf, data) in wanted(changes) {
        let path = tree.leaf(&leaf);
        let parents = tree.parents(&leaf);
        let Some(data) = data else {
            if let Some(node) = nodes.get(&path) {
                removals.push((path, parents.last().cloned(), node));
            }
            maybe_empty.insert(parents);
            continue;
        };
        match nodes.get(&path) {
            Some(node) if node.data == data => {}
            Some(_) => ops.push(Op::Set(path, data)),
            None => {
                let mut above: Option<String> = None;
                for parent in parents {
                    if !children.contains_key(&parent) {
                        if let Some(above) = above {
                            *children.entry(above).or_default() += 1;
                        }
                        children.insert(parent.clone(), 0);
                        ops.push(Op::Create(parent.clone(), Vec::new()));
                    }
                    above = Some(parent);
                }
                if let Some(above) = above {
                    *children.entry(above).or_default() += 1;
                }
                ops.push(Op::Create(path, data));
            }
        }
    }
    for (path, parent, node) in removals {
        if node.children > 0 {
            // Somebody put nodes below it: it can't be deleted, but it names no endpoint any more.
            if !node.data.is_empty() {
                ops.push(Op::Set(path, Vec::new()));
            }
            continue;
        }
        ops.push(Op::Delete(path));
        if let Some(parent) = parent {
            *children.entry(parent).or_default() -= 1;
        }
    }
    // The innermost first: a version that goes may leave its app empty.
    while !maybe_empty.is_empty() {
        let mut above = BTreeSet::new();
        for mut parents in maybe_empty {
            let Some(parent) = parents.pop() else { continue };
            if children.get(&parent) == Some(&0) {
                if let Some(grandparent) = parents.last() {
                    *children.entry(grandparent.clone()).or_default() -= 1;
                }
                ops.push(Op::Delete(parent));
            }
            above.insert(parents);
        }
        maybe_empty = above;
        maybe_empty.remove(&Vec::new());
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::contract::registry::{config, endpoint, key, load};
    use model::registry::EntryKey;

    const ROOT: &str = "/caas/service/address";
    const LOADS: &str = "/caas/service/load";

    fn put(key: EntryKey) -> RegistryChange {
        RegistryChange::Put(key, endpoint(80))
    }

    fn nodes(list: &[(&str, &str, i32)]) -> BTreeMap<String, Node> {
        let node = |data: &str, children| Node {
            data: data.as_bytes().to_vec(),
            children,
        };
        list.iter()
            .map(|(path, data, children)| (format!("{ROOT}{path}"), node(data, *children)))
            .collect()
    }

    fn shown(changes: &[RegistryChange], there: &BTreeMap<String, Node>) -> Vec<String> {
        let show = |op: Op| match op {
            Op::Create(path, data) => format!("+{path} {}", String::from_utf8_lossy(&data)),
            Op::Set(path, data) => format!("={path} {}", String::from_utf8_lossy(&data)),
            Op::Delete(path) => format!("-{path}"),
        };
        let ops = plan(&Tree::new(""), changes, there);
        ops.into_iter().map(|op| show(op).replace(ROOT, "")).collect()
    }

    #[test]
    fn registry_plan_makes_parents_once() {
        let changes = [put(key("a", "1", "c1")), put(key("a", "1", "c2"))];
        assert_eq!(
            shown(&changes, &nodes(&[])),
            ["+/a ", "+/a/1 ", "+/a/1/c1 10.0.0.1:80", "+/a/1/c2 10.0.0.1:80"]
        );
        assert_eq!(needed(&Tree::new(""), &changes).len(), 4);
    }

    #[test]
    fn registry_plan_does_only_what_is_missing() {
        let there = nodes(&[
            ("/a", "", 1),
            ("/a/1", "", 2),
            ("/a/1/c1", "10.0.0.1:80", 0),
            ("/a/1/c2", "garbage", 0),
        ]);
        let changes = [
            put(key("a", "1", "c1")),
            put(key("a", "1", "c2")),
            RegistryChange::Remove(key("a", "1", "c9")),
        ];
        assert_eq!(shown(&changes, &there), ["=/a/1/c2 10.0.0.1:80"]);
    }

    #[test]
    fn registry_plan_puts_before_it_removes_and_clears_empty_parents() {
        let there = nodes(&[("/a", "", 1), ("/a/1", "", 1), ("/a/1/c1", "x", 0)]);
        let changes = [RegistryChange::Remove(key("a", "1", "c1")), put(key("a", "2", "c2"))];
        assert_eq!(
            shown(&changes, &there),
            ["+/a/2 ", "+/a/2/c2 10.0.0.1:80", "-/a/1/c1", "-/a/1"]
        );
        let changes = [RegistryChange::Remove(key("a", "1", "c1"))];
        assert_eq!(shown(&changes, &there), ["-/a/1/c1", "-/a/1", "-/a"]);
        // Empty parents that were left behind go with the next removal in them.
        let there = nodes(&[("/a", "", 1), ("/a/1", "", 0)]);
        assert_eq!(shown(&changes, &there), ["-/a/1", "-/a"]);
        // The last word on a key counts.
        let changes = [put(key("a", "1", "c1")), RegistryChange::Remove(key("a", "1", "c1"))];
        assert_eq!(shown(&changes, &nodes(&[])), [""; 0]);
    }

    #[test]
    fn registry_plan_keeps_loads_under_their_app() {
        let load = |c: &str| RegistryChange::Load(key("a", "1", c).load_key(), load("eu", None));
        let gone = |c: &str| RegistryChange::LoadRemove(key("a", "1", c).load_key());
        let show = |changes: &[RegistryChange], there: &[(&str, i32)]| {
            let node = |children| Node {
                data: Vec::new(),
                children,
            };
            let nodes = there.iter().map(|(path, n)| (format!("{LOADS}{path}"), node(*n)));
            let ops = plan(&Tree::new(""), changes, &nodes.collect());
            let show = |op: Op| match op {
                Op::Create(path, _) => format!("+{path}"),
                Op::Set(path, _) => format!("={path}"),
                Op::Delete(path) => format!("-{path}"),
            };
            ops.into_iter()
                .map(|op| show(op).replace(LOADS, ""))
                .collect::<Vec<_>>()
        };
        assert_eq!(show(&[load("c1"), load("c2")], &[]), ["+/a", "+/a/c1", "+/a/c2"]);
        let there = [("/a", 1), ("/a/c1", 0)];
        assert_eq!(show(&[load("c2"), gone("c1")], &there), ["+/a/c2", "-/a/c1"]);
        assert_eq!(show(&[gone("c1")], &there), ["-/a/c1", "-/a"]);
        assert_eq!(show(&[gone("c2")], &there), [""; 0]);
    }

    #[test]
    fn registry_plan_empties_what_it_cannot_delete() {
        let there = nodes(&[("/a", "", 1), ("/a/1", "", 1), ("/a/1/c1", "10.0.0.1:80", 1)]);
        let changes = [RegistryChange::Remove(key("a", "1", "c1"))];
        assert_eq!(shown(&changes, &there), ["=/a/1/c1 "]);
    }

    #[test]
    fn registry_batches_are_bounded_and_never_tear_a_replacement() {
        assert!(batches(&[]).is_empty());
        let mut changes = vec![RegistryChange::Config(
            "a".parse().expect("valid"),
            config("x.example.com"),
        )];
        for i in 0..5_000 {
            changes.push(RegistryChange::Remove(key("a", "1", &format!("c{i}"))));
            changes.push(put(key("a", "1", &format!("c{}", i + 1))));
        }
        let cut = batches(&changes);
        assert_eq!(cut.concat(), changes);
        for batch in &cut {
            assert!(batch.len() <= MAX_CHANGES);
            assert!(batch.iter().map(weight).sum::<usize>() <= MAX_BYTES);
            assert!(!matches!(batch.last(), Some(RegistryChange::Remove(_))), "torn");
            assert!(!matches!(batch.first(), Some(RegistryChange::Put(..))), "torn");
        }
        assert!(cut.len() > 10);
    }
}
