//! Shares that are plugged while the guest runs.

use super::domain::{Domain, PLUGGED, SHARE, plugged};
use super::host::Host;

const ELEMENT: &str = "/srv/more.xml";
/// Mounts what comes, and waits until it has gone.
const JOB: &str = r#"devices() { ls /sys/bus/virtio/drivers/virtiofs | grep -c '^virtio'; }
echo "READY"
for round in 1 2 3; do
    until mount -t virtiofs more /more 2>/dev/null; do sleep 0.1; done
    cp /more/from-host /more/from-guest-$round
    umount /more
    echo "USED $round"
    until [ "$(devices)" = 1 ]; do sleep 0.1; done
    echo "GONE $round"
done
until grep -q end /mnt/word; do sleep 0.2; done
"#;

#[test]
fn a_share_is_plugged_and_unplugged_three_times() {
    let host = Host::start();
    host.write(&format!("{SHARE}/job"), JOB);
    host.write(&format!("{SHARE}/word"), "go on");
    host.write(&format!("{PLUGGED}/from-host"), "some bytes\n");
    host.write(ELEMENT, plugged());
    let (virsh, domain) = (host.system(), Domain::new("plugged", "/srv"));
    virsh.define(&domain);
    virsh.start(&domain);
    // From then on there is a guest to take the device.
    virsh.wait_for_line(&domain, "READY", 1);
    for round in 1..=3 {
        assert!(host.serves(SHARE) && !host.serves(PLUGGED));
        virsh.ok(&["attach-device", domain.name, ELEMENT, "--live"]);
        virsh.wait_for_line(&domain, &format!("USED {round}"), 1);
        assert!(host.serves(PLUGGED), "{}", host.report());
        let copy = host.read(&format!("{PLUGGED}/from-guest-{round}"));
        assert_eq!(copy, "some bytes\n");
        virsh.ok(&["detach-device", domain.name, ELEMENT, "--live"]);
        virsh.wait_for_line(&domain, &format!("GONE {round}"), 1);
        host.wait_for("the end of what was unplugged", || !host.serves(PLUGGED));
    }
    host.write(&format!("{SHARE}/word"), "the end");
    virsh.wait_until_off(&domain);
    host.wait_until_none_serves();
}
