#![allow(clippy::unwrap_used, reason = "trouble with a temporary directory is a failed test")]

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

struct Directory {
    temporary: TempDir,
    source: Source,
}

impl Directory {
    fn new() -> Self {
        let temporary = TempDir::new().unwrap();
        let root = temporary.path().join("config");
        fs::create_dir(&root).unwrap();
        Self { source: Source::new([root]), temporary }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temporary.path().join("config").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// Names of changed files with their number of documents; `-` before the name of one that is gone, `!` before one
    /// with a problem.
    fn changes(&mut self, rescan: Rescan<'_>) -> Vec<String> {
        let root = self.temporary.path().join("config");
        let scan = self.source.scan(rescan);
        let name = |path: &Path| path.strip_prefix(&root).unwrap().display().to_string();
        scan.changes
            .iter()
            .map(|(path, content)| match content {
                None => format!("-{}", name(path)),
                Some(content) if content.problem.is_some() => format!("!{} {}", name(path), content.documents.len()),
                Some(content) => format!("{} {}", name(path), content.documents.len()),
            })
            .collect()
    }

    fn all(&mut self) -> Vec<String> {
        self.changes(Rescan::All)
    }
}

#[test]
fn files_are_found_recursively_in_the_order_of_paths() {
    let mut directory = Directory::new();
    directory.write("b.yaml", "a: 1\n---\nb: 1\n");
    directory.write("a/z.yml", "a: 1\n");
    directory.write("a/y.json", "{}");
    directory.write("a/readme.md", "a: 1");
    directory.write(".hidden.yaml", "a: 1");
    directory.write(".git/config.yaml", "a: 1");
    assert_eq!(directory.all(), ["a/y.json 1", "a/z.yml 1", "b.yaml 2"]);
    assert_eq!(directory.all(), [""; 0]);
}

#[test]
fn edits_additions_and_removals_are_changes() {
    let mut directory = Directory::new();
    directory.write("a.yaml", "a: 1\n");
    directory.write("b.yaml", "a: 1\n");
    directory.all();
    directory.write("a.yaml", "a: 2\n");
    directory.write("c.yaml", "a: 1\n");
    fs::remove_file(directory.path("b.yaml")).unwrap();
    assert_eq!(directory.all(), ["a.yaml 1", "-b.yaml", "c.yaml 1"]);
}

#[test]
fn a_named_file_is_read_without_a_walk() {
    let mut directory = Directory::new();
    directory.write("a.yaml", "a: 1\n");
    directory.write("b.yaml", "a: 1\n");
    directory.all();
    for name in ["a.yaml", "b.yaml", "c.yaml", "d.txt"] {
        directory.write(name, "a: 2\n");
    }
    let named = [directory.path("a.yaml"), directory.path("c.yaml"), directory.path("d.txt")];
    assert_eq!(directory.changes(Rescan::Changed(&named)), ["a.yaml 1", "c.yaml 1"]);
    fs::remove_file(directory.path("a.yaml")).unwrap();
    assert_eq!(directory.changes(Rescan::Changed(&named)), ["-a.yaml"]);
    assert_eq!(directory.all(), ["b.yaml 1"]);
}

#[test]
fn a_new_directory_is_walked() {
    let mut directory = Directory::new();
    directory.all();
    directory.write("new/a.yaml", "a: 1\n");
    let named = [directory.path("new")];
    assert_eq!(directory.changes(Rescan::Changed(&named)), ["new/a.yaml 1"]);
}

#[test]
fn unchanged_documents_stay_the_same() {
    let mut directory = Directory::new();
    directory.write("a.yaml", "a: 1\n---\nb: 1\n");
    let before = directory.source.scan(Rescan::All);
    directory.write("a.yaml", "a: 2\nx: 3\n---\nb: 1\n");
    let after = directory.source.scan(Rescan::All);
    let documents = |scan: &Scan| scan.changes.values().next().unwrap().as_ref().unwrap().documents.clone();
    assert!(!Arc::ptr_eq(&documents(&before)[0], &documents(&after)[0]));
    assert!(Arc::ptr_eq(&documents(&before)[1], &documents(&after)[1]));
    assert_eq!(documents(&after)[1].first_line(), 3);
}

/// How the kubelet mounts a ConfigMap: files are links into `..data`, which is a link that gets swapped.
#[test]
fn a_kubernetes_volume_is_read_and_its_swap_is_noticed() {
    let mut directory = Directory::new();
    directory.write("..2026_1/routes.yaml", "a: 1\n");
    symlink("..2026_1", directory.path("..data")).unwrap();
    symlink("..data/routes.yaml", directory.path("routes.yaml")).unwrap();
    assert_eq!(directory.all(), ["routes.yaml 1"]);
    directory.write("..2026_2/routes.yaml", "a: 1\n---\nb: 1\n");
    symlink("..2026_2", directory.path("..data_tmp")).unwrap();
    fs::rename(directory.path("..data_tmp"), directory.path("..data")).unwrap();
    fs::remove_dir_all(directory.path("..2026_1")).unwrap();
    let named = [directory.path("..data")];
    assert_eq!(directory.changes(Rescan::Changed(&named)), ["routes.yaml 2"]);
}

#[test]
fn links_to_directories_are_followed_and_circles_end() {
    let mut directory = Directory::new();
    directory.write(".releases/1/a.yaml", "a: 1\n");
    symlink(".releases/1", directory.path("current")).unwrap();
    symlink("..", directory.path(".releases/1/up")).unwrap();
    symlink(".", directory.path("self")).unwrap();
    symlink("nowhere", directory.path("dangling.yaml")).unwrap();
    let found = directory.all();
    assert_eq!(found.first().map(String::as_str), Some("current/a.yaml 1"));
    assert!(found.len() < 10, "{found:?}");
}

#[test]
fn a_file_that_becomes_empty_keeps_its_documents_until_a_poll_confirms() {
    let mut directory = Directory::new();
    directory.write("a.yaml", "a: 1\n");
    directory.all();
    directory.write("a.yaml", "");
    let named = [directory.path("a.yaml")];
    assert_eq!(directory.changes(Rescan::Changed(&named)), ["!a.yaml 1"]);
    assert_eq!(directory.changes(Rescan::Changed(&named)), [""; 0]);
    assert!(directory.source.scan(Rescan::Changed(&[])).pending);
    assert_eq!(directory.all(), ["a.yaml 0"]);
    assert!(!directory.source.scan(Rescan::All).pending);
}

#[test]
fn a_save_that_empties_first_changes_nothing_in_between() {
    let mut directory = Directory::new();
    directory.write("a.yaml", "a: 1\n");
    directory.all();
    directory.write("a.yaml", "");
    assert_eq!(directory.all(), ["!a.yaml 1"]);
    directory.write("a.yaml", "a: 1\n");
    assert_eq!(directory.all(), ["a.yaml 1"]);
}

#[test]
fn a_directory_that_vanishes_removes_nothing() {
    let mut directory = Directory::new();
    directory.write("a.yaml", "a: 1\n");
    directory.all();
    let root = directory.path("");
    let away = directory.temporary.path().join("away");
    fs::rename(&root, &away).unwrap();
    assert_eq!(directory.all(), [""; 0]);
    assert_eq!(directory.source.scan(Rescan::All).diagnostics[0].code, Code::Unreadable);
    // As after unmounting: a directory is there, and it is another one.
    fs::create_dir(&root).unwrap();
    assert_eq!(directory.all(), [""; 0]);
    assert_eq!(directory.source.scan(Rescan::All).diagnostics.len(), 1);
    fs::remove_dir(&root).unwrap();
    fs::rename(&away, &root).unwrap();
    assert_eq!(directory.all(), [""; 0]);
    assert!(directory.source.scan(Rescan::All).diagnostics.is_empty());
    fs::remove_file(directory.path("a.yaml")).unwrap();
    assert_eq!(directory.all(), ["-a.yaml"]);
}

#[test]
fn bytes_that_are_no_text_are_a_problem_of_the_file() {
    let mut directory = Directory::new();
    directory.write("a.yaml", "a: 1\n");
    directory.all();
    fs::write(directory.path("a.yaml"), b"a: 1\nb: \xff\n").unwrap();
    assert_eq!(directory.all(), ["!a.yaml 1"]);
    assert_eq!(directory.all(), [""; 0]);
    directory.write("a.yaml", "a: 1\n");
    assert_eq!(directory.all(), ["a.yaml 1"]);
}

#[test]
fn a_root_may_be_a_file_of_any_name() {
    let temporary = TempDir::new().unwrap();
    let file = temporary.path().join("mesh.conf");
    fs::write(&file, "a: 1\n").unwrap();
    let mut source = Source::new([file.clone()]);
    assert!(source.scan(Rescan::All).changes.contains_key(&*file));
}
