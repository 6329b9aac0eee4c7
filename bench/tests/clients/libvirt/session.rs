//! libvirt of a user without privileges.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::domain::{Domain, SHARE};
use super::host::{HOME, Host};

const JOB: &str = r#"cp /mnt/from-host /mnt/from-guest
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
    let copy = format!("{SHARE}/from-guest");
    assert_eq!(host.read(&copy), "some bytes\n");
    let owner = fs::metadata(host.path(&copy)).expect("there").uid();
    assert_eq!(owner, 1000, "root of the guest is the user");
    host.write(&format!("{SHARE}/word"), "the end");
    virsh.wait_until_off(&domain);
    host.wait_until_none_serves();

    virsh.start(&domain);
    assert!(!host.serving().is_empty());
    virsh.ok(&["destroy", domain.name]);
    host.wait_until_none_serves();
}
