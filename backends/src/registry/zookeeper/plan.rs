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
    }
}

fn encode(config: &model::AppConfig) -> Vec<u8> {
    serde_json::to_vec(config).expect("it has only text keys and no map that could fail")
}

/// What is to be at each leaf after `changes`: the last word on each counts.
fn wanted(changes: &[RegistryChange]) -> BTreeMap<Leaf, Option<Vec<u8>>> {
    let each = changes.iter().map(|change| match change {
        RegistryChange::Put(key, endpoint) => (Leaf::Endpoint(key.clone()), Some(endpoint.to_string().into_bytes())),
        RegistryChange::Remove(key) => (Leaf::Endpoint(key.clone()), None),
        RegistryChange::Config(app, config) => (Leaf::Config(app.clone()), Some(encode(config))),
        RegistryChange::ConfigRemove(app) => (Leaf::Config(app.clone()), None),
    });
    each.collect()
}

/// The paths that must be known to plan `changes`.
pub(super) fn needed(tree: &Tree, changes: &[RegistryChange]) -> Vec<String> {
    let mut paths = BTreeSet::new();
    for leaf in wanted(changes).keys() {
        paths.insert(tree.leaf(leaf));
        if let Leaf::Endpoint(key) = leaf {
            paths.insert(tree.app(&key.app));
            paths.insert(tree.version(key));
        }
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
    let mut maybe_empty = BTreeSet::new();
    for (leaf, data) in wanted(changes) {
        let path = tree.leaf(&leaf);
        let Some(data) = data else {
            if let Some(node) = nodes.get(&path) {
                removals.push((leaf.clone(), path, node));
            }
            if let Leaf::Endpoint(key) = leaf {
                maybe_empty.insert((tree.app(&key.app), tree.version(&key)));
            }
            continue;
        };
        match nodes.get(&path) {
            Some(node) if node.data == data => {}
            Some(_) => ops.push(Op::Set(path, data)),
            None => {
                if let Leaf::Endpoint(key) = &leaf {
                    let (app, version) = (tree.app(&key.app), tree.version(key));
                    if !children.contains_key(&app) {
                        children.insert(app.clone(), 0);
                        ops.push(Op::Create(app.clone(), Vec::new()));
                    }
                    if !children.contains_key(&version) {
                        *children.entry(app).or_default() += 1;
                        children.insert(version.clone(), 0);
                        ops.push(Op::Create(version.clone(), Vec::new()));
                    }
                    *children.entry(version).or_default() += 1;
                }
                ops.push(Op::Create(path, data));
            }
        }
    }
    for (leaf, path, node) in removals {
        if node.children > 0 {
            // Somebody put nodes below it: it can't be deleted, but it names no endpoint any more.
            if !node.data.is_empty() {
                ops.push(Op::Set(path, Vec::new()));
            }
            continue;
        }
        ops.push(Op::Delete(path));
        if let Leaf::Endpoint(key) = leaf {
            *children.entry(tree.version(&key)).or_default() -= 1;
        }
    }
    let mut apps = BTreeSet::new();
    for (app, version) in maybe_empty {
        if children.get(&version) == Some(&0) {
            *children.entry(app.clone()).or_default() -= 1;
            ops.push(Op::Delete(version));
        }
        apps.insert(app);
    }
    ops.extend(
        apps.into_iter()
            .filter(|app| children.get(app) == Some(&0))
            .map(Op::Delete),
    );
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::contract::registry::{config, endpoint, key};
    use model::registry::EntryKey;

    const ROOT: &str = "/caas/service/address";

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
