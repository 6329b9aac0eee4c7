//! Birth times, owners, labels; and what the guest remembers.

use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use super::{ALWAYS, INODE, METADATA, NEVER, SHARES, Scene};
use crate::counted::Counted;

pub(super) fn birth_times(scene: &mut Scene) {
    scene.run("cd /inode; head -c 4194304 /dev/zero >mapped; echo >small; cat mapped >/dev/null");
    // Anew, so that the decision is taken with the size that it has now. A
    // kernel keeps what somebody is just about to let go.
    let modes = scene.run(
        "cd /inode; for i in $(seq 300); do
            sync; echo 2 >/proc/sys/vm/drop_caches; cat mapped >/dev/null
            guest_probe dax mapped | grep -q dax && break; sleep 0.1
        done; guest_probe dax mapped small",
    );
    assert_eq!(modes, "dax\nrequests\n");
    scene.run("guest_probe touch /inode/mapped --ranges 2");
    let before = Counted::by(&scene.vm, INODE);
    for (name, mask) in [("mapped", 0xbff), ("small", 0xfff)] {
        let told = scene.run(&format!("guest_probe born /inode/{name}"));
        let host = scene
            .host(&format!("inode/{name}"))
            .metadata()
            .expect("there");
        let born = host.created().expect("known").duration_since(UNIX_EPOCH);
        let born = born.expect("after 1970").as_nanos();
        let (bits, told) = told.trim().split_once(' ').expect("two words");
        // Those above are the guest kernel's own.
        let bits = u32::from_str_radix(bits, 16).expect("bits") & 0xfff;
        assert_eq!((bits, told), (mask, &*born.to_string()), "{name}");
    }
    let looked = scene
        .run("cd /inode; for i in 1 2 3; do guest_probe born mapped; stat -c '%s %b' mapped; done");
    assert!(looked.contains("4194304 8192"), "{looked}");
    scene.run("guest_probe touch /inode/mapped --ranges 2; guest_probe dax /inode/mapped");
    let after = Counted::by(&scene.vm, INODE);
    assert!(
        after.requests("Statx") >= before.requests("Statx") + 5,
        "{after:?}"
    );
    // Its inode was not dropped, and with it its mappings.
    for counter in ["setups", "removals"] {
        assert_eq!(after.window(counter), before.window(counter), "{counter}");
    }
    assert_eq!(after.requests("Forget"), before.requests("Forget"));
}

pub(super) fn groups(scene: &mut Scene) {
    let member = "/usr/bin/setpriv --reuid 1000 --regid 1000 --groups 2000";
    scene
        .run("cd /inode; mkdir team hand; chown 0:2000 team hand; chmod 770 team; chmod 2770 hand");
    scene.run(&format!(
        "cd /inode; {member} touch team/f hand/f; {member} mkdir hand/d"
    ));
    let owner = |path: &str| {
        let found = scene.host(path).metadata().expect("there");
        (found.uid(), found.gid(), found.mode() & 0o7000)
    };
    assert_eq!(owner("inode/team/f"), (1000, 1000, 0));
    assert_eq!(owner("inode/hand/f"), (1000, 2000, 0));
    assert_eq!(owner("inode/hand/d"), (1000, 2000, 0o2000));
    let other = "/usr/bin/setpriv --reuid 1001 --regid 1001 --clear-groups touch /inode/team/g";
    assert!(scene.fails(other).contains("ermission denied"));
}

pub(super) fn labels(scene: &mut Scene) {
    scene.run("cd /labels; echo x >file; mkdir dir; ln -s file link; mknod pipe p; xfs_io -T -c 'pwrite -q 0 1' -c 'flink /labels/tmp' .");
    let label = |path: &str| {
        let mut value = [0; 256];
        let len = rustix::fs::lgetxattr(scene.host(path), "security.selinux", &mut value);
        let len = len.unwrap_or_else(|errno| panic!("{path}: {errno}"));
        String::from_utf8_lossy(&value[..len]).into_owned()
    };
    let of_file = label("labels/file");
    assert!(!of_file.is_empty());
    for path in ["labels/dir", "labels/link", "labels/pipe", "labels/tmp"] {
        assert_eq!(label(path), of_file, "{path}");
    }
}

pub(super) fn caches(scene: &mut Scene) {
    for name in &SHARES[ALWAYS..=NEVER] {
        std::fs::write(scene.host(&format!("{name}/file")), vec![b'.'; 9000]).expect("written");
        scene.run(&format!(
            "cat /{name}/file >/dev/null; ls /{name} >/dev/null"
        ));
    }
    let cat = |name: &str| format!("cat /{name}/file >/dev/null");
    let listed = |name: &str| format!("ls -a /{name} >/dev/null");
    assert_eq!(scene.cost(ALWAYS, "Read", &cat("always")), 0);
    assert!(scene.cost(METADATA, "Read", &cat("metadata")) > 0);
    assert!(scene.cost(NEVER, "Read", &cat("never")) > 0);
    let all = |scene: &mut Scene, share, script: &str| {
        scene.cost(share, "Readdir", script) + scene.cost(share, "Readdirplus", script)
    };
    assert_eq!(all(scene, ALWAYS, &listed("always")), 0);
    assert_eq!(all(scene, METADATA, &listed("metadata")), 0);
    assert!(all(scene, NEVER, &listed("never")) > 0);
    assert_eq!(Counted::by(&scene.vm, NEVER).requests("Readdirplus"), 0);
    let stat = |name: &str| format!("stat /{name}/file >/dev/null");
    assert_eq!(scene.cost(METADATA, "Lookup", &stat("metadata")), 0);
    assert!(scene.cost(NEVER, "Lookup", &stat("never")) > 0);

    assert!(
        scene
            .fails("guest_probe load /never/file 0 4")
            .contains("map")
    );
    assert_eq!(scene.run("guest_probe load /metadata/file 0 4"), "....");
    let bytes = |name: &str| format!("dd if=/dev/zero of=/{name}/new bs=1 count=500 2>/dev/null");
    assert_eq!(scene.cost(NEVER, "Write", &bytes("never")), 500);
    let kept_back = scene.cost(ALWAYS, "Write", &bytes("always"));
    assert!(kept_back < 20, "{kept_back} writes");
    assert_eq!(
        scene.host("always/new").metadata().expect("there").len(),
        500
    );
}
