//! Mount points of the host, ids mapped by the guest, overlays.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::{INODE, Scene};

pub(super) fn mount_points(scene: &mut Scene) {
    scene.run("echo below >/inode/mounted/file; mkdir /inode/mounted/dir");
    assert_eq!(scene.read("inode/mounted/file"), "below\n");
    let devices = scene.run("cd /inode; stat -c %d . mounted mounted/file mounted/dir");
    let devices: Vec<&str> = devices.lines().collect();
    assert!(devices[0] != devices[1], "{devices:?}");
    assert_eq!(devices[1..], [devices[1]; 3]);
    let shown = scene.run("df -P /inode/mounted; grep /inode/mounted /proc/mounts");
    assert!(shown.contains("/inode/mounted virtiofs"), "{shown}");
    let totals = rustix::fs::statfs(scene.host("inode/mounted")).expect("totals");
    let kilobytes = totals.f_blocks as u64 * totals.f_bsize as u64 / 1024;
    assert!(
        shown.contains(&kilobytes.to_string()),
        "{kilobytes}: {shown}"
    );
    assert!(scene.cost(INODE, "Syncfs", "sync") >= 2, "each of its own");
    assert!(
        scene
            .fails("cd /inode; ln b mounted/b")
            .contains("ross-device")
    );
}

pub(super) fn ids_mapped(scene: &mut Scene) {
    scene.run("mkdir /inode/ids /tmp/ids; chmod 777 /inode/ids; touch /inode/ids/five; chown 5:6 /inode/ids/five");
    scene.run("/usr/bin/mount --bind -o X-mount.idmap=b:0:1000:100 /inode/ids /tmp/ids");
    assert_eq!(scene.run("stat -c '%u %g' /tmp/ids/five"), "1005 1006\n");
    scene.run("cd /tmp/ids; /usr/bin/setpriv --reuid 1007 --regid 1008 --clear-groups touch seven");
    let seven = scene.host("inode/ids/seven").metadata().expect("there");
    assert_eq!((seven.uid(), seven.gid()), (7, 8));
    // Who has no id there can leave nothing there.
    scene.fails("cd /tmp/ids; /usr/bin/setpriv --reuid 5000 --regid 5000 --clear-groups touch no");
    scene.run("cd /; umount /tmp/ids");
}

pub(super) fn overlays(scene: &mut Scene) {
    scene.run("unxz -c </overlay >/tmp/overlay.ko; insmod /tmp/overlay.ko");
    scene.run("cd /inode; mkdir -p lower/dir upper work upper2 work2; cd lower; for f in kept changed removed moved dir/inner; do echo $f >$f; done; mkdir /tmp/merged");
    for (upper, work, options) in [("upper", "work", ",userxattr"), ("upper2", "work2", "")] {
        scene.run(&format!(
            "/usr/bin/mount -t overlay overlay -o lowerdir=/inode/lower,upperdir=/inode/{upper},workdir=/inode/{work}{options} /tmp/merged"
        ));
        let merged = scene.run(
            "cd /tmp/merged; echo new >>changed; rm removed; mv moved elsewhere; rm -r dir; mkdir dir; \
             echo made >dir/made; find . | sort; cat kept changed elsewhere dir/made",
        );
        let names = ".\n./changed\n./dir\n./dir/made\n./elsewhere\n./kept\n";
        assert_eq!(merged, format!("{names}kept\nchanged\nnew\nmoved\nmade\n"));
        for name in ["removed", "moved"] {
            let whiteout = scene
                .host(&format!("inode/{upper}/{name}"))
                .symlink_metadata();
            let whiteout = whiteout.expect("there");
            assert!(
                whiteout.file_type().is_char_device() && whiteout.rdev() == 0,
                "{name}"
            );
        }
        let prefix = if options.is_empty() {
            "trusted"
        } else {
            "user"
        };
        let mut opaque = [0; 8];
        let dir = scene.host(&format!("inode/{upper}/dir"));
        let found = rustix::fs::getxattr(&dir, format!("{prefix}.overlay.opaque"), &mut opaque);
        assert_eq!((found, opaque[0]), (Ok(1), b'y'));
        assert_eq!(scene.read("inode/lower/changed"), "changed\n");
        scene.run("umount /tmp/merged");
    }
    // Again, over what is there now.
    scene.run(
        "/usr/bin/mount -t overlay overlay -o lowerdir=/inode/upper2:/inode/lower /tmp/merged",
    );
    assert_eq!(
        scene.run("cd /tmp/merged; ls; cat dir/*"),
        "changed\ndir\nelsewhere\nkept\nmade\n"
    );
    scene.run("umount /tmp/merged");
}
