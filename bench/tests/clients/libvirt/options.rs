//! What else libvirt's XML can say of a share, all of it at a time.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::domain::{Domain, SHARE};
use super::host::Host;

const FILESYSTEM: &str = "<filesystem type='mount' accessmode='passthrough'>
      <driver type='virtiofs' queue='1024'/>
      <binary path='/usr/bin/daxwindowd' xattr='on'>
        <cache mode='always'/>
        <sandbox mode='namespace'/>
        <thread_pool size='4'/>
        <openfiles max='4096'/>
      </binary>
      <source dir='/srv/data'/>
      <target dir='data'/>
      <readonly/>
      <idmap>
        <uid start='0' target='1000' count='100'/>
        <gid start='0' target='1000' count='100'/>
      </idmap>
    </filesystem>";
/// Flags that libvirt makes of it.
const FLAGS: [&str; 10] = [
    "--xattr",
    "--cache",
    "always",
    "--sandbox",
    "namespace",
    "--thread-pool-size=4",
    "--rlimit-nofile=4096",
    "--readonly",
    "--uid-map=:0:1000:100:",
    "--gid-map=:0:1000:100:",
];
const JOB: &str = r#"echo "owner $(stat -c %u /mnt/from-host)"
echo x > /mnt/new || echo "READ-ONLY"
cat /mnt/from-host
until grep -q end /mnt/word; do sleep 0.2; done
"#;

#[test]
fn every_element_about_a_share_is_taken() {
    let host = Host::start();
    host.write(&format!("{SHARE}/job"), JOB);
    host.write(&format!("{SHARE}/from-host"), "DONE\n");
    host.run(&["chown", "--recursive", "somebody:somebody", SHARE]);
    let domain = Domain::new("options", "/srv").with_filesystem(FILESYSTEM);
    let virsh = host.system();
    virsh.define(&domain);
    virsh.start(&domain);
    let serving = host.serving();
    assert!(!serving.is_empty());
    for inmate in serving {
        let lacks = |flag: &&&str| !inmate.words.iter().any(|word| word == **flag);
        let missing: Vec<_> = FLAGS.iter().filter(lacks).collect();
        assert!(missing.is_empty(), "{missing:?} in {inmate:?}");
    }
    virsh.wait_for_line(&domain, "DONE", 1);
    for line in ["owner 0", "READ-ONLY"] {
        virsh.wait_for_line(&domain, line, 1);
    }
    let new = host.path(&format!("{SHARE}/new"));
    assert!(fs::metadata(new).is_err());
    let owner = fs::metadata(host.path(SHARE)).expect("there").uid();
    assert_eq!(owner, 1000);
    virsh.ok(&["destroy", domain.name]);
    host.wait_until_none_serves();
}
