//! The command line but `run`.

mod demo;
mod egress;
mod show;
mod validate;

use std::path::Path;

/// A directory with these files in `config/`.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("config")).unwrap();
    for (name, text) in files {
        write(&place.path().join("config").join(name), text);
    }
    place
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

const GATEWAY: &str = "\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: web
  namespace: shop
spec:
  selector:
    istio: ingressgateway
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ['*.example.com']
";
