//! libvirt of a user without privileges.

use std::fs;
use std::os::unix::fs::MetadataExt;

use daxwindow_vm::Inmate;

use super::domain::{Domain, SHARE};
use super::host::{HOME, Host};

const JOB: &str = r#"cp /mnt/from-host /mnt/from-guest
chown 5:6 /mnt/from-guest
mkdir /mnt/folder
sync
echo "DONE"
until grep -q end /mnt/word; do sleep 0.2; done
"#;

#[test]
fn a_user_without_privileges_starts_a_domain_again_and_again() {
    let host = Host::start();
    host.write(&format!("{SHARE}/job"), JOB);
    host.write(&format!("{SHARE}/word"), "go on");
    host.write(&format!("{SHARE}/from-host"), "some bytes\n");
    host.run(&["chown", "--recursive", "somebody:somebody", SHARE]);
    let (virsh, domain) = (host.session(), Domain::new("own", HOME));
    virsh.define(&domain);

    virsh.start(&domain);
    virsh.wait_for_line(&domain, "DONE", 1);
    let serving = host.serving();
    let maps = |inmate: &Inmate| inmate.words.contains(&"--uid-map=:0:1000:1:".into());
    assert!(serving.iter().all(maps), "{serving:?}");
    let copy = format!("{SHARE}/from-guest");
    assert_eq!(host.read(&copy), "some bytes\n");
    let owner = |path: &str| {
        let metadata = fs::metadata(host.path(path)).expect("there");
        (metadata.uid(), metadata.gid())
    };
    // Root of the guest is the user, others are the user's subordinate ids.
    assert_eq!(owner(&format!("{SHARE}/folder")), (1000, 1000));
    assert_eq!(owner(&copy), (100_004, 100_005));
    host.write(&format!("{SHARE}/word"), "the end");
    virsh.wait_until_off(&domain);
    host.wait_until_none_serves();

    virsh.start(&domain);
    assert!(!host.serving().is_empty());
    virsh.ok(&["destroy", domain.name]);
    host.wait_until_none_serves();
}
