//! What lies in `deploy/`, held against Kubernetes' schemas, a linter and this binary, without a cluster.

use std::path::Path;
use std::process::Command;

use crate::support::text;

#[test]
fn what_is_deployed_is_valid() {
    let home = std::env::var_os("HOME").expect("a home");
    let environment = Path::new(&home).join(".cache/ferrotype/deploy");
    if !environment.join("ready").exists() {
        eprintln!("skipped: there are no schemas of Kubernetes (make deploy-checks)");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/check_deploy.py");
    let mut command = Command::new(environment.join("bin/python"));
    let output = command.args([script, env!("CARGO_BIN_EXE_ferrotype")]).output().expect("Python starts");
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}
