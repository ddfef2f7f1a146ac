//! A radix tree over byte strings that visits all strings which a value begins with.

use super::Target;

/// Keys with what they lead to. All nodes lie in one array, the children of a node side by side.
#[derive(Debug, Clone, Default)]
pub(super) struct Trie {
    nodes: Vec<Node>,
    /// First byte of the label of each node.
    firsts: Vec<u8>,
    labels: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    label: u32,
    label_length: u32,
    children: u32,
    child_count: u32,
    target: Option<Target>,
}

/// A node to be made out of keys that agree in their first `depth` bytes.
struct Open<'k> {
    index: usize,
    keys: &'k [(&'k [u8], Target)],
    depth: usize,
}

impl Trie {
    /// Builds from distinct keys in byte order.
    pub(super) fn new(keys: &[(&[u8], Target)]) -> Self {
        let mut trie = Self::default();
        if keys.is_empty() {
            return trie;
        }
        trie.reserve_node(0);
        // A stack, not recursion: `/a`, `/aa`, `/aaa` ... may go deep.
        let mut open = vec![Open { index: 0, keys, depth: 0 }];
        while let Some(next) = open.pop() {
            trie.fill(next, &mut open);
        }
        trie.labels.shrink_to_fit();
        trie
    }

    fn reserve_node(&mut self, first: u8) {
        self.nodes.push(Node { label: 0, label_length: 0, children: 0, child_count: 0, target: None });
        self.firsts.push(first);
    }

    /// Makes a node and leaves its children to `open`.
    fn fill<'k>(&mut self, Open { index, keys, depth }: Open<'k>, open: &mut Vec<Open<'k>>) {
        let (first, last) = (keys[0].0, keys[keys.len() - 1].0);
        let shared = first[depth..].iter().zip(&last[depth..]).take_while(|(a, b)| a == b).count();
        let end = depth + shared;
        let (target, mut keys) = if first.len() == end { (Some(keys[0].1), &keys[1..]) } else { (None, keys) };
        let label = self.labels.len();
        self.labels.extend_from_slice(&first[depth..end]);
        let children = self.nodes.len();
        while let Some((key, _)) = keys.first() {
            let byte = key[end];
            let (same, others) = keys.split_at(keys.partition_point(|(key, _)| key[end] == byte));
            open.push(Open { index: self.nodes.len(), keys: same, depth: end });
            self.reserve_node(byte);
            keys = others;
        }
        self.nodes[index] = Node {
            label: small(label),
            label_length: small(shared),
            children: small(children),
            child_count: small(self.nodes.len() - children),
            target,
        };
    }

    /// Visits what each key leads to that the value begins with, shortest first. `at` gives the value's bytes.
    pub(super) fn walk(&self, length: usize, at: impl Fn(usize) -> u8, mut visit: impl FnMut(Target)) {
        let Some(mut node) = self.nodes.first() else { return };
        let mut position = 0;
        // The first byte of a child's label has led to it.
        let mut known = 0;
        loop {
            let label_length = node.label_length as usize;
            if length - position < label_length {
                return;
            }
            if label_length > known {
                let label = &self.labels[node.label as usize..][..label_length];
                if !(known..label_length).all(|i| at(position + i) == label[i]) {
                    return;
                }
            }
            position += label_length;
            known = 1;
            if let Some(target) = node.target {
                visit(target);
            }
            if position == length {
                return;
            }
            let children = node.children as usize;
            let firsts = &self.firsts[children..][..node.child_count as usize];
            let byte = at(position);
            let (Some(&lowest), Some(&highest)) = (firsts.first(), firsts.last()) else { return };
            // In order, and mostly few: counting needs no branch that could be mispredicted. Numbers often fill a range.
            let child = match firsts.len() {
                count if usize::from(highest - lowest) + 1 == count => usize::from(byte.wrapping_sub(lowest)),
                0..=16 => firsts.iter().map(|&first| usize::from(first < byte)).sum(),
                _ => firsts.partition_point(|&first| first < byte),
            };
            if firsts.get(child) != Some(&byte) {
                return;
            }
            node = &self.nodes[children + child];
        }
    }
}

/// Nodes and label bytes are bounded by the text of the configuration.
fn small(number: usize) -> u32 {
    u32::try_from(number).expect("a route list holds less than 4 GiB of text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(keys: &[&str], value: &str) -> Vec<usize> {
        let mut pairs: Vec<_> = keys.iter().enumerate().map(|(i, key)| (key.as_bytes(), Target::node(i))).collect();
        pairs.sort_by_key(|(key, _)| *key);
        let mut found = Vec::new();
        Trie::new(&pairs).walk(value.len(), |at| value.as_bytes()[at], |target| found.push(target.0 as usize));
        found
    }

    #[test]
    fn all_beginnings_are_found_shortest_first() {
        let keys = ["/a/b/c", "/a", "", "/a/x", "/", "/abc", "q"];
        assert_eq!(found(&keys, "/a/b/c/d"), [2, 4, 1, 0]);
        assert_eq!(found(&keys, "/abd"), [2, 4, 1]);
        assert_eq!(found(&keys, ""), [2]);
        assert_eq!(found(&keys, "z"), [2]);
        assert_eq!(found(&["/a"], "/"), [] as [usize; 0]);
        assert_eq!(found(&[], "/"), [] as [usize; 0]);
    }

    #[test]
    fn ten_thousand_nested_keys_build() {
        let keys: Vec<String> = (1..=10_000).map(|length| "a".repeat(length)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        assert_eq!(found(&keys, "aaa"), [0, 1, 2]);
        assert_eq!(found(&keys, &"a".repeat(20_000)).len(), 10_000);
    }
}
