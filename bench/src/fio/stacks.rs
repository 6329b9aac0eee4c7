//! The ways by which a guest gets at a file of the host, and the guests in
//! which they are measured.
//!
//! | stack | what it is |
//! | --- | --- |
//! | `dax-always`, `dax-inode` | daxwindowd with a window in one piece, mounted with `dax=always`, `dax=inode` |
//! | `dax-ranges` | the same with `dax=always`, each range mapped by QEMU |
//! | `dax-half`, `dax-quarter`, `dax-eighth` | like `dax-inode`, with a window of that part of the file |
//! | `dax-never` | daxwindowd without one |
//! | `virtiofsd-auto`, `virtiofsd-always` | virtiofsd with `--cache auto`, `--cache always` |
//! | `9p` | QEMU's own server, mounted with `cache=loose` and the largest messages |
//! | `virtio-blk` | no file system: the file itself is the disk, `cache=writeback` |
//!
//! Law: a stack with a window has a guest to itself, because QEMU tells every
//! vhost-user device of a guest about each range that is mapped; all others
//! share one. All guests have the same kernel, memory and processors.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use daxwindow_shared::window::RANGE_BYTES;
use daxwindow_vm::kernel::Flavour;
use daxwindow_vm::qemu::escaped;
use daxwindow_vm::{
    AccelChoice, Dax, Kit, ShareOptions, VmOptions, module_of, peers, preload_library,
};

use super::tree::Tree;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(super) enum Stack {
    /// daxwindowd, all files through the window
    DaxAlways,
    /// daxwindowd, all files through a window that QEMU maps range by range
    DaxRanges,
    /// daxwindowd, the files that gain by it
    DaxInode,
    /// The same with a window of half the file
    DaxHalf,
    /// Of a quarter
    DaxQuarter,
    /// Of an eighth
    DaxEighth,
    /// daxwindowd without a window
    DaxNever,
    /// virtiofsd as it comes
    VirtiofsdAuto,
    /// virtiofsd that lets the guest keep what it has
    VirtiofsdAlways,
    /// QEMU's 9p
    #[value(name = "9p")]
    NineP,
    /// The file as a disk
    #[value(name = "virtio-blk")]
    Blk,
}

impl Stack {
    /// As the results have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Stack::DaxAlways => "daxwindow dax=always",
            Stack::DaxRanges => "daxwindow dax=always by ranges",
            Stack::DaxInode => "daxwindow dax=inode",
            Stack::DaxHalf => "daxwindow dax=inode, window 1/2",
            Stack::DaxQuarter => "daxwindow dax=inode, window 1/4",
            Stack::DaxEighth => "daxwindow dax=inode, window 1/8",
            Stack::DaxNever => "daxwindow dax=never",
            Stack::VirtiofsdAuto => "virtiofsd cache=auto",
            Stack::VirtiofsdAlways => "virtiofsd cache=always",
            Stack::NineP => "9p",
            Stack::Blk => "virtio-blk",
        }
    }

    /// As flag, tag and directory have it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Stack::DaxAlways => "dax-always",
            Stack::DaxRanges => "dax-ranges",
            Stack::DaxInode => "dax-inode",
            Stack::DaxHalf => "dax-half",
            Stack::DaxQuarter => "dax-quarter",
            Stack::DaxEighth => "dax-eighth",
            Stack::DaxNever => "dax-never",
            Stack::VirtiofsdAuto => "virtiofsd-auto",
            Stack::VirtiofsdAlways => "virtiofsd-always",
            Stack::NineP => "9p",
            Stack::Blk => "virtio-blk",
        }
    }

    /// Bytes come through the window.
    pub(super) fn has_window(self) -> bool {
        matches!(self, Stack::DaxAlways | Stack::DaxRanges | Stack::DaxInode)
            || self.has_small_window()
    }

    /// The window is smaller than the file.
    pub(super) fn has_small_window(self) -> bool {
        self.files_per_window() > 1
    }

    /// How many times the window the file is, if it is larger.
    fn files_per_window(self) -> u64 {
        match self {
            Stack::DaxHalf => 2,
            Stack::DaxQuarter => 4,
            Stack::DaxEighth => 8,
            _ => 1,
        }
    }

    fn window_bytes(self, setup: &Setup) -> u64 {
        match self.files_per_window() {
            1 => setup.window_bytes,
            parts => (setup.file_bytes / parts).next_multiple_of(RANGE_BYTES),
        }
    }

    /// QEMU maps one region.
    fn is_in_one_piece(self) -> bool {
        self.has_window() && self != Stack::DaxRanges
    }

    /// Ours.
    pub(super) fn is_daxwindow(self) -> bool {
        self.has_window() || self == Stack::DaxNever
    }

    pub(super) fn is_virtiofsd(self) -> bool {
        matches!(self, Stack::VirtiofsdAuto | Stack::VirtiofsdAlways)
    }

    /// The guest has what it has read still when a file is opened again.
    pub(super) fn keeps(self) -> bool {
        !matches!(self, Stack::DaxNever | Stack::VirtiofsdAuto)
    }

    /// Where the guest has its files.
    pub(super) fn mount(self) -> String {
        format!("/s/{}", self.word())
    }

    fn share(self, tree: &Tree, setup: &Setup) -> Option<ShareOptions> {
        let dax = match self {
            Stack::DaxAlways | Stack::DaxRanges => Dax::Always,
            Stack::DaxInode | Stack::DaxHalf | Stack::DaxQuarter | Stack::DaxEighth => Dax::Inode,
            Stack::DaxNever | Stack::VirtiofsdAuto | Stack::VirtiofsdAlways => Dax::Never,
            Stack::NineP | Stack::Blk => return None,
        };
        let mut share = ShareOptions::new(tree.shared(), dax);
        share.tag = self.word().into();
        share.mount_at = Some(self.mount());
        share.window_bytes = self.window_bytes(setup);
        let mut told = |words: &[&str]| {
            share.daemon_arguments = words.iter().map(|w| (*w).to_owned()).collect();
        };
        match self {
            Stack::VirtiofsdAuto => told(&["--cache=auto"]),
            Stack::VirtiofsdAlways => told(&["--cache=always"]),
            _ => told(&["--status-socket", &tree.status(self).to_string_lossy()]),
        }
        if self == Stack::DaxRanges {
            let ranges = ["--dax-mapping", "ranges"].map(str::to_owned);
            share.daemon_arguments.extend(ranges);
        }
        if self.is_daxwindow() {
            share
                .daemon_arguments
                .extend_from_slice(&setup.daemon_arguments);
        }
        share.daemon = match self.is_virtiofsd() {
            true => Some(peers::VIRTIOFSD.into()),
            false => setup.daemon.clone(),
        };
        Some(share)
    }
}

/// What all guests have in common.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub memory_bytes: u64,
    pub cpus: usize,
    pub window_bytes: u64,
    /// Of the file that fits into the guest's memory.
    pub file_bytes: u64,
    pub accel: AccelChoice,
    /// Of QEMU; none is that of the kit's guests.
    pub cpu_model: Option<String>,
    pub daemon: Option<PathBuf>,
    /// Further ones of our daemon.
    pub daemon_arguments: Vec<String>,
    pub offline: bool,
}

/// The stacks of each guest.
pub(super) fn guests(stacks: &[Stack]) -> Vec<Vec<Stack>> {
    let (windows, others): (Vec<Stack>, Vec<Stack>) = stacks.iter().partition(|s| s.has_window());
    let mut guests: Vec<Vec<Stack>> = windows.into_iter().map(|stack| vec![stack]).collect();
    if !others.is_empty() {
        guests.push(others);
    }
    guests
}

/// Modules of the generic kernel, in the order in which they are loaded.
fn modules(stacks: &[Stack]) -> Vec<&'static str> {
    let mut modules = Vec::new();
    if stacks.contains(&Stack::NineP) {
        modules.extend(["netfs", "9pnet", "9pnet_virtio", "9p"]);
    }
    if stacks.contains(&Stack::Blk) {
        modules.push("virtio_blk");
    }
    modules
}

/// A guest with these stacks.
pub(super) fn guest(kit: &Kit, stacks: &[Stack], tree: &Tree, setup: &Setup) -> Result<VmOptions> {
    let shares = stacks.iter().filter_map(|stack| stack.share(tree, setup));
    let mut options = VmOptions {
        memory_bytes: setup.memory_bytes,
        cpus: setup.cpus,
        accel: setup.accel,
        offline: setup.offline,
        kernel: Flavour::Generic,
        tools: vec!["fio".into()],
        // Else an emulated guest sooner or later finds its time stamp counter
        // wrong by a thousandth, and reads a clock that is many times slower
        // from then on, before and after each operation of fio's.
        kernel_arguments: vec!["tsc=reliable".into()],
        ..VmOptions::new(shares.collect())
    };
    if stacks.iter().any(|stack| stack.is_in_one_piece()) {
        options.preload = Some(preload_library()?);
    }
    // QEMU takes the last one.
    if let Some(model) = &setup.cpu_model {
        options.qemu_arguments = vec!["-cpu".into(), model.clone()];
    }
    for name in modules(stacks) {
        let file = module_of(kit, Flavour::Generic, name)?;
        options.files.push((format!("/modules/{name}.ko.xz"), file));
    }
    for &stack in stacks {
        options.qemu_arguments.extend(match stack {
            Stack::NineP => ninep(tree.shared()),
            Stack::Blk => disks(&tree.disks()),
            _ => Vec::new(),
        });
    }
    Ok(options)
}

fn ninep(directory: &Path) -> Vec<String> {
    let directory = escaped(directory);
    let tag = Stack::NineP.word();
    vec![
        "-fsdev".into(),
        format!("local,id=ninep,path={directory},security_model=none"),
        "-device".into(),
        format!("virtio-9p-pci,fsdev=ninep,mount_tag={tag}"),
    ]
}

/// vda, vdb, ... in this order.
fn disks(files: &[PathBuf]) -> Vec<String> {
    let each = files.iter().enumerate().flat_map(|(index, file)| {
        let file = escaped(file);
        [
            "-drive".into(),
            format!("if=none,id=disk{index},format=raw,cache=writeback,aio=threads,file={file}"),
            "-device".into(),
            format!("virtio-blk-pci,drive=disk{index}"),
        ]
    });
    each.collect()
}

/// What a guest with these stacks does first. A disk that nobody has open
/// loses its page cache, so somebody has.
pub(super) fn prepare(stacks: &[Stack]) -> String {
    let mut script = String::from("set -e\n");
    for name in modules(stacks) {
        script.push_str(&format!(
            "unxz -c </modules/{name}.ko.xz >/tmp/{name}.ko\ninsmod /tmp/{name}.ko\nrm /tmp/{name}.ko\n"
        ));
    }
    for &stack in stacks {
        let (place, tag) = (stack.mount(), stack.word());
        match stack {
            Stack::NineP => script.push_str(&format!(
                "mkdir -p {place}\nmount -t 9p -o \
                 trans=virtio,version=9p2000.L,msize=524288,cache=loose {tag} {place}\n"
            )),
            Stack::Blk => script.push_str(
                "for disk in /dev/vd?; do setsid sleep 1000000 <$disk >/dev/null 2>&1 & done\n",
            ),
            // A mount does not wait for its session, a look into it does.
            _ => script.push_str(&format!("ls {place} >/dev/null\n")),
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_a_guest_to_itself() {
        let all = Stack::value_variants();
        let guests = guests(all);
        let windows = all.iter().filter(|stack| stack.has_window());
        let windows: Vec<Vec<Stack>> = windows.map(|stack| vec![*stack]).collect();
        let (last, alone) = guests.split_last().expect("several");
        assert_eq!(alone, windows);
        assert_eq!(last.len(), all.len() - windows.len());
        assert_eq!(super::guests(&[Stack::NineP]), [[Stack::NineP]]);
    }

    #[test]
    fn flags_and_words_agree() {
        for stack in Stack::value_variants() {
            let value = stack.to_possible_value().expect("a value");
            assert_eq!(value.get_name(), stack.word());
            assert!(!(stack.has_window() && stack.is_virtiofsd()));
        }
    }

    #[test]
    fn scripts_are_well_formed_and_load_what_they_need() {
        let script = prepare(Stack::value_variants());
        let mut check = std::process::Command::new("sh");
        let status = check.args(["-n", "-c", &script]).status().expect("sh");
        assert!(status.success(), "{script}");
        let at = |word: &str| script.find(word).expect("there");
        assert!(at("netfs.ko") < at("9pnet.ko") && at("/9p.ko") < at("mount -t 9p"));
        assert!(!prepare(&[Stack::DaxAlways]).contains("insmod"));
    }
}
