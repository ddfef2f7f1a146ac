//! The ways in which files change.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{LONGER_THAN_A_BATCH, Volume, answer, becomes, get, settled, start, stays, turns};
use crate::harness::gateway::write_into;
use crate::harness::status::{Status, text};

#[tokio::test]
async fn create_edit_replace_delete() {
    let gateway = start().await;
    let file = gateway.config().join("route.yaml");
    assert_eq!(get(&gateway, "a.test").await, "404");

    fs::write(&file, answer("route", "a.test", "created")).unwrap();
    turns(&gateway, "a.test", "404", "created").await;
    assert_eq!(Status::of(&gateway).await.state("VirtualService", "route"), "accepted");

    // In place: truncated, then written.
    fs::write(&file, answer("route", "a.test", "edited")).unwrap();
    turns(&gateway, "a.test", "created", "edited").await;

    // In place, without truncation.
    let mut open = fs::OpenOptions::new().write(true).open(&file).unwrap();
    open.write_all(answer("route", "a.test", "patched").as_bytes()).unwrap();
    open.set_len(answer("route", "a.test", "patched").len() as u64).unwrap();
    drop(open);
    turns(&gateway, "a.test", "edited", "patched").await;

    // Another file takes its place.
    write_into(&gateway.config(), "route.yaml", &answer("route", "a.test", "replaced"));
    turns(&gateway, "a.test", "patched", "replaced").await;

    // A new name for the same file.
    fs::rename(&file, gateway.config().join("renamed.yml")).unwrap();
    stays(&gateway, "a.test", "replaced").await;
    let states = Status::of(&gateway).await.states("VirtualService", "route");
    assert_eq!(states, [("renamed.yml".to_owned(), "accepted".to_owned())]);

    // A name that is no configuration.
    fs::rename(gateway.config().join("renamed.yml"), gateway.config().join("route.yaml.off")).unwrap();
    turns(&gateway, "a.test", "replaced", "404").await;
    fs::rename(gateway.config().join("route.yaml.off"), &file).unwrap();
    turns(&gateway, "a.test", "404", "replaced").await;

    fs::remove_file(&file).unwrap();
    turns(&gateway, "a.test", "replaced", "404").await;
    assert!(Status::of(&gateway).await.states("VirtualService", "route").is_empty());
}

#[tokio::test]
async fn directories_come_and_go() {
    let gateway = start().await;
    let shop = gateway.config().join("shop");
    fs::create_dir_all(shop.join("routes/eu")).unwrap();
    fs::write(shop.join("routes/eu/route.yaml"), answer("route", "a.test", "nested")).unwrap();
    becomes(&gateway, "a.test", "nested").await;
    fs::write(shop.join("routes/eu/route.yaml"), answer("route", "a.test", "edited")).unwrap();
    turns(&gateway, "a.test", "nested", "edited").await;

    // A whole tree is moved in, as a deployment does.
    let place = tempfile::tempdir_in(gateway.config().parent().unwrap()).unwrap();
    fs::create_dir_all(place.path().join("new/deep")).unwrap();
    fs::write(place.path().join("new/deep/b.yaml"), answer("b", "b.test", "moved")).unwrap();
    fs::rename(place.path().join("new"), gateway.config().join("new")).unwrap();
    becomes(&gateway, "b.test", "moved").await;
    fs::write(gateway.config().join("new/deep/b.yaml"), answer("b", "b.test", "edited")).unwrap();
    turns(&gateway, "b.test", "moved", "edited").await;

    fs::remove_dir_all(&shop).unwrap();
    turns(&gateway, "a.test", "edited", "404").await;
    assert_eq!(get(&gateway, "b.test").await, "edited");
}

#[tokio::test]
async fn a_thousand_files_at_once() {
    let gateway = start().await;
    let many = gateway.config().join("many");
    fs::create_dir(&many).unwrap();
    let before = gateway.generation().await;
    for number in 0..1000 {
        let yaml = answer(&format!("route-{number:04}"), &format!("h{number}.test"), &format!("n{number}"));
        fs::write(many.join(format!("{number:04}.yaml")), yaml).unwrap();
    }
    for number in [0, 1, 499, 500, 998, 999] {
        becomes(&gateway, &format!("h{number}.test"), &format!("n{number}")).await;
    }
    let status = Status::of(&gateway).await;
    let accepted =
        (0..1000).filter(|number| status.state("VirtualService", &format!("route-{number:04}")) == "accepted");
    assert_eq!(accepted.count(), 1000);
    // Changes that come together are applied together: far fewer reloads than files.
    let reloads = gateway.generation().await - before;
    assert!(reloads <= 100, "{reloads} reloads for 1000 files");

    fs::remove_dir_all(&many).unwrap();
    for number in [0, 500, 999] {
        becomes(&gateway, &format!("h{number}.test"), "404").await;
    }
    assert!(Status::of(&gateway).await.states("VirtualService", "route-0777").is_empty());
}

/// What the kubelet does with a ConfigMap volume: `..data` is a link to a directory with a time stamp, and each file a
/// link through it. An update writes a new directory, swaps `..data` by rename, and removes the old one.
struct ConfigMapVolume<'a> {
    path: &'a Path,
    version: u32,
}

impl ConfigMapVolume<'_> {
    fn update(&mut self, files: &[(&str, String)]) {
        let old = format!("..2026_01_01.{}", self.version);
        self.version += 1;
        let new = format!("..2026_01_01.{}", self.version);
        fs::create_dir(self.path.join(&new)).unwrap();
        for (name, content) in files {
            fs::write(self.path.join(&new).join(name), content).unwrap();
        }
        symlink(&new, self.path.join("..data_tmp")).unwrap();
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).unwrap();
        for (name, _) in files {
            let link = self.path.join(name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new("..data").join(name), link).unwrap();
            }
        }
        for entry in fs::read_dir(self.path).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if !name.starts_with("..") && !files.iter().any(|(file, _)| *file == name) {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        let _ = fs::remove_dir_all(self.path.join(old));
    }
}

#[tokio::test]
async fn config_map_volume() {
    let volume = Volume::new();
    let path = volume.path();
    let mut config_map = ConfigMapVolume { path: &path, version: 0 };
    config_map.update(&[("route.yaml", answer("route", "a.test", "v1"))]);
    let gateway = volume.start().await;
    assert_eq!(get(&gateway, "a.test").await, "v1");
    // Read once, through the link, and not again in the directory that the link leads to.
    let states = Status::of(&gateway).await.states("VirtualService", "route");
    assert_eq!(states, [("route.yaml".to_owned(), "accepted".to_owned())]);

    for (old, new) in [("v1", "v2"), ("v2", "v3"), ("v3", "v4")] {
        config_map.update(&[("route.yaml", answer("route", "a.test", new))]);
        turns(&gateway, "a.test", old, new).await;
    }
    // A key comes and a key goes.
    config_map.update(&[("route.yaml", answer("route", "a.test", "v5")), ("more.yaml", answer("more", "b.test", "m"))]);
    turns(&gateway, "a.test", "v4", "v5").await;
    becomes(&gateway, "b.test", "m").await;
    config_map.update(&[("route.yaml", answer("route", "a.test", "v6"))]);
    turns(&gateway, "a.test", "v5", "v6").await;
    becomes(&gateway, "b.test", "404").await;
    assert!(Status::of(&gateway).await.errors().is_empty());
}

#[tokio::test]
async fn what_editors_do() {
    let gateway = start().await;
    let file = gateway.config().join("route.yaml");
    fs::write(&file, answer("route", "a.test", "v1")).unwrap();
    becomes(&gateway, "a.test", "v1").await;

    // A file beside it that is renamed over it; its own name is no configuration, or a hidden one.
    for (draft, old, new) in [("route.yaml~", "v1", "v2"), (".route.yaml", "v2", "v3"), ("4913", "v3", "v4")] {
        let draft = gateway.config().join(draft);
        fs::write(&draft, answer("route", "a.test", new)).unwrap();
        fs::rename(&draft, &file).unwrap();
        turns(&gateway, "a.test", old, new).await;
    }

    // Truncated, and written a while later: an empty file is no reason to drop what was in it.
    let mut open = fs::File::create(&file).unwrap();
    tokio::time::sleep(LONGER_THAN_A_BATCH / 5).await;
    assert_eq!(get(&gateway, "a.test").await, "v4");
    open.write_all(answer("route", "a.test", "v5").as_bytes()).unwrap();
    drop(open);
    turns(&gateway, "a.test", "v4", "v5").await;

    // vim with `backup`: the file is renamed away, a new one is written, the backup is removed.
    let backup = gateway.config().join("route.yaml~");
    fs::rename(&file, &backup).unwrap();
    fs::write(&file, answer("route", "a.test", "v6")).unwrap();
    becomes(&gateway, "a.test", "v6").await;
    fs::remove_file(backup).unwrap();
    stays(&gateway, "a.test", "v6").await;
}

#[tokio::test]
async fn a_half_written_file_loses_nothing() {
    let gateway = start().await;
    let file = gateway.config().join("route.yaml");
    let old = answer("route", "a.test", "old");
    let new = answer("route", "a.test", "new");
    fs::write(&file, &old).unwrap();
    becomes(&gateway, "a.test", "old").await;

    // Wherever the writer pauses, and however long, as long as what is there by then isn't right by itself.
    let right = new.find("200").unwrap();
    for cut in (0..right).step_by(7) {
        let mut open = fs::File::create(&file).unwrap();
        open.write_all(&new.as_bytes()[..cut]).unwrap();
        open.flush().unwrap();
        settled(&gateway).await;
        let got = get(&gateway, "a.test").await;
        assert_eq!(got, "old", "after {cut} bytes of {}: {:?}", new.len(), &new[..cut]);
        open.write_all(&new.as_bytes()[cut..]).unwrap();
        drop(open);
        turns(&gateway, "a.test", "old", "new").await;
        fs::write(&file, &old).unwrap();
        turns(&gateway, "a.test", "new", "old").await;
    }

    // One that was begun and never finished: what was there before serves on, and the operator is told.
    let mut open = fs::OpenOptions::new().write(true).open(&file).unwrap();
    open.set_len((old.len() - 5) as u64).unwrap();
    open.seek(SeekFrom::End(0)).unwrap();
    drop(open);
    stays(&gateway, "a.test", "old").await;
    let errors = Status::of(&gateway).await.errors();
    assert!(errors.iter().any(|error| text(error, "file").ends_with("route.yaml")), "{errors:?}");
    fs::write(&file, &new).unwrap();
    turns(&gateway, "a.test", "old", "new").await;
    assert!(Status::of(&gateway).await.errors().is_empty());
}

#[tokio::test]
async fn a_directory_that_vanishes_removes_nothing() {
    let volume = Volume::new();
    fs::write(volume.path().join("route.yaml"), answer("route", "a.test", "v1")).unwrap();
    let gateway = volume.start().await;
    assert_eq!(get(&gateway, "a.test").await, "v1");

    let away = volume.path().with_file_name("away");
    fs::rename(volume.path(), &away).unwrap();
    stays(&gateway, "a.test", "v1").await;
    let errors = Status::of(&gateway).await.errors();
    assert!(
        errors.iter().any(|error| text(error, "file").ends_with("/volume") && error["code"] == "GW0001"),
        "{errors:?}"
    );
    gateway.says("/volume").await;

    // Edited while it was away.
    fs::write(away.join("route.yaml"), answer("route", "a.test", "v2")).unwrap();
    fs::rename(&away, volume.path()).unwrap();
    turns(&gateway, "a.test", "v1", "v2").await;
    assert!(Status::of(&gateway).await.errors().is_empty());
    // And followed as before.
    fs::write(volume.path().join("route.yaml"), answer("route", "a.test", "v3")).unwrap();
    turns(&gateway, "a.test", "v2", "v3").await;

    // Removed with all that was in it: first its files go, which removes what was in them; then it comes back.
    fs::rename(volume.path(), &away).unwrap();
    stays(&gateway, "a.test", "v3").await;
    fs::create_dir(volume.path()).unwrap();
    fs::write(volume.path().join("other.yaml"), answer("other", "b.test", "v4")).unwrap();
    becomes(&gateway, "b.test", "v4").await;
    becomes(&gateway, "a.test", "404").await;
}
