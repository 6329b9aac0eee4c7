//! A domain and its guest. The elements that are about the share are those of
//! docs/clients.md, word by word.

/// What the page says, and what domains here are made of.
const PAGE: &str = include_str!("../../../../docs/clients.md");
/// The directory that the page's domain shares, and the tag.
pub(crate) const SHARE: &str = "/srv/data";
const TAG: &str = "data";
/// What is plugged while the guest runs.
pub(crate) const PLUGGED: &str = "/srv/more";
const PLUGGED_TAG: &str = "more";
/// Where the guest's kernel and initramfs are.
pub(crate) const KERNEL: &str = "/srv/vm/kernel";
pub(crate) const INITRAMFS: &str = "/srv/vm/initramfs";

/// The guest mounts the share and runs what is called `job` in it. When that
/// has ended it powers off.
pub(crate) const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /more
if mount -t virtiofs data /mnt; then sh /mnt/job; else echo "NO SHARE"; fi
umount /mnt
poweroff -f
"#;

/// A domain's XML with the page's elements.
pub(crate) struct Domain {
    pub name: &'static str,
    /// A file for the guest's console.
    pub console: String,
    filesystem: String,
    further: String,
}

impl Domain {
    /// As the page has it.
    pub(crate) fn new(name: &'static str, folder: &str) -> Domain {
        let filesystem = element("filesystem");
        assert!(filesystem.contains(SHARE) && filesystem.contains(TAG));
        Domain {
            name,
            console: format!("{folder}/{name}.console"),
            filesystem,
            further: String::new(),
        }
    }

    /// It does not say which program serves.
    pub(crate) fn without_binary(mut self) -> Domain {
        let lines = self.filesystem.lines();
        let others = lines.filter(|line| !line.contains("<binary"));
        self.filesystem = others.collect::<Vec<_>>().join("\n");
        self
    }

    /// It says all this of its share.
    pub(crate) fn with_filesystem(mut self, element: &str) -> Domain {
        self.filesystem = element.into();
        self
    }

    /// It names another program.
    pub(crate) fn with_binary(mut self, path: &str) -> Domain {
        let own = "path='/usr/bin/daxwindowd'";
        assert!(self.filesystem.contains(own));
        self.filesystem = self.filesystem.replace(own, &format!("path='{path}'"));
        self
    }

    /// It gives QEMU an argument that there is not.
    pub(crate) fn that_fails(mut self) -> Domain {
        self.further = "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>\
                        <arg value='-no-such-argument'/></commandline>"
            .into();
        self
    }

    pub(crate) fn xml(&self) -> String {
        let Domain {
            name,
            console,
            filesystem,
            further,
        } = self;
        let memory = element("memoryBacking");
        format!(
            "<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  {memory}
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{KERNEL}</kernel>
    <initrd>{INITRAMFS}</initrd>
    <cmdline>console=ttyS0 panic=-1 loglevel=5</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    {filesystem}
    <serial type='file'><source path='{console}'/></serial>
    <memballoon model='none'/>
  </devices>
  {further}
</domain>
"
        )
    }
}

/// The element for a directory that is plugged while the guest runs.
pub(crate) fn plugged() -> String {
    let element = element("filesystem");
    let element = element.replace(&format!("'{SHARE}'"), &format!("'{PLUGGED}'"));
    element.replace(&format!("'{TAG}'"), &format!("'{PLUGGED_TAG}'"))
}

/// The page's first element of that name.
fn element(name: &str) -> String {
    let (start, end) = (format!("<{name}"), format!("</{name}>"));
    let from = PAGE.find(&start).expect("the page has the element");
    let length = PAGE[from..].find(&end).expect("the element has an end");
    PAGE[from..from + length + end.len()].to_owned()
}
