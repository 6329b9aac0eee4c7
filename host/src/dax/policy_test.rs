//! Who gets DAX, and what is said of it.

use std::ffi::OsStr;

use daxwindow_shared::fuse::Attr;

use super::capabilities::Capabilities;
use super::globs::NameRules;
use super::no_dax::NoDax;
use super::policy::*;

const PLAIN: Capabilities = Capabilities::PLAIN_MMAP;

/// As stock QEMU is, with the padded view.
const WRITABLE_ONLY: Capabilities = Capabilities {
    past_eof: false,
    padded: true,
    readonly_fd: false,
    replace: false,
    partial_unmap: false,
    announced: true,
    window_base: Some(0xc000_0000),
    emulated: false,
};

fn file(size: u64) -> Attr {
    Attr {
        mode: 0o100_644,
        size,
        ..Default::default()
    }
}

fn executable(size: u64, bits: u32) -> Attr {
    Attr {
        mode: 0o100_644 | bits,
        ..file(size)
    }
}

fn decide(options: &DaxOptions, attr: &Attr, can: &Capabilities) -> Result<(), NoDax> {
    let file = Candidate {
        attr,
        name: OsStr::new("name"),
        path: &|| Some("dir/name".into()),
        mappable: &|_| Ok(()),
        has_hole: &|| false,
    };
    options.decide(&file, can, 4096)
}

fn names(include: &[&str], exclude: &[&str]) -> NameRules {
    let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
    let (include, exclude): (Vec<_>, Vec<_>) = (parse(include), parse(exclude));
    NameRules::new(&include, &exclude).unwrap()
}

#[test]
fn modes() {
    let mut options = DaxOptions {
        min_file_bytes: 100,
        ..Default::default()
    };
    assert_eq!(decide(&options, &file(99), &PLAIN), Err(NoDax::Small));
    assert_eq!(decide(&options, &file(100), &PLAIN), Ok(()));
    let directory = Attr {
        mode: 0o040_755,
        size: 4096,
        ..Default::default()
    };
    assert_eq!(decide(&options, &directory, &PLAIN), Err(NoDax::NotRegular));
    options.mode = DaxMode::Always;
    assert_eq!(decide(&options, &file(0), &PLAIN), Ok(()));
    options.mode = DaxMode::Never;
    assert_eq!(decide(&options, &file(1 << 20), &PLAIN), Err(NoDax::Off));
}

#[test]
fn executables_get_dax_where_they_stay_executable() {
    let options = DaxOptions::default();
    for bits in [0o100, 0o010, 0o001] {
        let program = executable(1 << 20, bits);
        assert_eq!(decide(&options, &program, &PLAIN), Ok(()));
        let on_qemu = decide(&options, &program, &WRITABLE_ONLY);
        assert_eq!(on_qemu, Err(NoDax::Executable));
        let no_upgrade = Capabilities {
            replace: false,
            ..PLAIN
        };
        let without = decide(&options, &program, &no_upgrade);
        assert_eq!(without, Err(NoDax::Executable));
        let readonly = DaxOptions {
            readonly: true,
            ..Default::default()
        };
        assert_eq!(decide(&readonly, &program, &no_upgrade), Ok(()));
    }
    assert_eq!(decide(&options, &file(1 << 20), &WRITABLE_ONLY), Ok(()));
}

/// An emulator runs its translation of code that was in the window before.
#[test]
fn code_is_kept_out_of_the_window_of_an_emulated_guest() {
    let emulated = Capabilities {
        emulated: true,
        ..PLAIN
    };
    let decided = |options: &DaxOptions, name: &str, mode| {
        let attr = Attr {
            mode,
            ..file(1 << 20)
        };
        let candidate = Candidate {
            attr: &attr,
            name: OsStr::new(name),
            path: &|| None,
            mappable: &|_| Ok(()),
            has_hole: &|| false,
        };
        options.decide(&candidate, &emulated, 4096)
    };
    let (data, program) = (0o100_644, 0o100_755);
    let auto = DaxOptions::default();
    for (name, mode) in [("ls", program), ("libc.so.6", data), ("mod.so", data)] {
        assert_eq!(decided(&auto, name, mode), Err(NoDax::Executable), "{name}");
        let always = DaxOptions {
            executables: Executables::Always,
            ..auto.clone()
        };
        assert_eq!(decided(&always, name, mode), Ok(()), "{name}");
    }
    for name in ["data", "a.sox", "so", "x.so2.gz"] {
        assert_eq!(decided(&auto, name, data), Ok(()), "{name}");
    }
    let all = DaxOptions {
        mode: DaxMode::Always,
        ..auto.clone()
    };
    assert_eq!(decided(&all, "ls", program), Ok(()), "who asks for all");
    let lines = auto.describe(&emulated).join("; ");
    assert!(lines.contains("emulated"), "{lines}");
}

#[test]
fn what_cannot_be_opened_for_writing_is_mapped_only_read_only() {
    let ask = |mode, can: &Capabilities, why| {
        let options = DaxOptions {
            mode,
            ..Default::default()
        };
        let candidate = Candidate {
            attr: &file(1 << 20),
            name: OsStr::new("name"),
            path: &|| None,
            mappable: &|writable| match why {
                NoDax::NotWritable if !writable => Ok(()),
                why => Err(why),
            },
            has_hole: &|| false,
        };
        options.decide(&candidate, can, 4096)
    };
    let (inode, always) = (DaxMode::Inode, DaxMode::Always);
    for why in [NoDax::NotWritable, NoDax::CopiesUp, NoDax::NotMappable] {
        assert_eq!(ask(inode, &WRITABLE_ONLY, why), Err(why));
    }
    assert_eq!(ask(inode, &PLAIN, NoDax::NotWritable), Ok(()));
    assert_eq!(
        ask(always, &WRITABLE_ONLY, NoDax::NotWritable),
        Err(NoDax::NotWritable)
    );
    // What it maps writable is copied first.
    let copied = ask(inode, &WRITABLE_ONLY, NoDax::CopiesUp);
    assert_eq!(copied, Err(NoDax::CopiesUp));
    // It may be unable to show the copy.
    let cannot_replace = Capabilities {
        replace: false,
        ..PLAIN
    };
    let copied = ask(inode, &cannot_replace, NoDax::CopiesUp);
    assert_eq!(copied, Err(NoDax::CopiesUp));
    assert_eq!(ask(inode, &PLAIN, NoDax::CopiesUp), Ok(()));
    for can in [&PLAIN, &WRITABLE_ONLY] {
        assert_eq!(ask(always, can, NoDax::CopiesUp), Ok(()));
        for mode in [inode, always] {
            assert_eq!(ask(mode, can, NoDax::NotMappable), Err(NoDax::NotMappable));
        }
    }
}

#[test]
fn holes_count_where_the_front_end_fills_them() {
    let ask = |options: &DaxOptions, blocks, can: &Capabilities, has_hole| {
        let attr = Attr {
            blocks,
            ..file(1 << 20)
        };
        let candidate = Candidate {
            attr: &attr,
            name: OsStr::new("name"),
            path: &|| None,
            mappable: &|_| Ok(()),
            has_hole: &|| has_hole,
        };
        options.decide(&candidate, can, 4096)
    };
    let options = DaxOptions::default();
    assert_eq!(ask(&options, 8, &WRITABLE_ONLY, true), Err(NoDax::Sparse));
    assert_eq!(
        ask(&options, 8, &WRITABLE_ONLY, false),
        Ok(()),
        "compressed"
    );
    assert_eq!(
        ask(&options, 2048, &WRITABLE_ONLY, true),
        Ok(()),
        "not looked for"
    );
    assert_eq!(ask(&options, 8, &PLAIN, true), Ok(()));
    let always = DaxOptions {
        mode: DaxMode::Always,
        ..Default::default()
    };
    assert_eq!(ask(&always, 8, &WRITABLE_ONLY, true), Ok(()));
    // Else one guest has no DAX of a file that is just being made longer.
    let named = DaxOptions {
        names: names(&["nam*"], &[]),
        ..Default::default()
    };
    assert_eq!(ask(&named, 8, &WRITABLE_ONLY, true), Ok(()));
}

#[test]
fn the_flag_for_executables_wins_over_the_front_end() {
    let program = executable(1 << 20, 0o111);
    let with = |executables, mode| DaxOptions {
        executables,
        mode,
        ..Default::default()
    };
    let (always, never) = (Executables::Always, Executables::Never);
    let inode = DaxMode::Inode;
    assert_eq!(
        decide(&with(always, inode), &program, &WRITABLE_ONLY),
        Ok(())
    );
    let refused = decide(&with(never, inode), &program, &PLAIN);
    assert_eq!(refused, Err(NoDax::Executable));
    // What always maps, always has to say.
    assert_eq!(
        decide(&with(never, DaxMode::Always), &program, &PLAIN),
        Ok(())
    );
}

#[test]
fn names_count_in_both_modes() {
    for mode in [DaxMode::Inode, DaxMode::Always] {
        let with = |names| DaxOptions {
            mode,
            names,
            ..Default::default()
        };
        let large = file(1 << 20);
        let out = decide(&with(names(&[], &["na*"])), &large, &PLAIN);
        assert_eq!(out, Err(NoDax::Excluded));
        let out = decide(&with(names(&["other"], &[])), &large, &PLAIN);
        assert_eq!(out, Err(NoDax::NotIncluded));
        assert_eq!(
            decide(&with(names(&["dir/*"], &[])), &large, &PLAIN),
            Ok(())
        );
    }
    // A name lets no file in that is too small.
    let options = DaxOptions {
        names: names(&["name"], &[]),
        ..Default::default()
    };
    assert_eq!(decide(&options, &file(1), &PLAIN), Err(NoDax::Small));
}

#[test]
fn a_front_end_that_only_maps_writable_gets_no_read_only_share() {
    let options = DaxOptions {
        readonly: true,
        ..Default::default()
    };
    let can = Capabilities {
        readonly_fd: false,
        ..PLAIN
    };
    assert_eq!(
        decide(&options, &file(1 << 20), &can),
        Err(NoDax::ReadOnlyShare)
    );
    assert!(decide(&options, &file(1 << 20), &PLAIN).is_ok());
    assert!(!options.writable_from_the_start(0o644, &PLAIN));
}

#[test]
fn end_of_file_rule() {
    let can = Capabilities {
        past_eof: false,
        ..PLAIN
    };
    let options = DaxOptions {
        readonly: true,
        mode: DaxMode::Always,
        ..Default::default()
    };
    assert_eq!(decide(&options, &file(8192), &can), Ok(()));
    for size in [0, 8193] {
        let refused = decide(&options, &file(size), &can);
        assert_eq!(refused, Err(NoDax::PastEndOfFile));
    }
    let options = DaxOptions {
        readonly: false,
        ..options
    };
    let refused = decide(&options, &file(8192), &can);
    assert_eq!(refused, Err(NoDax::PastEndOfFile));
    let can = Capabilities {
        padded: true,
        ..can
    };
    assert_eq!(decide(&options, &file(1), &can), Ok(()));
}

#[test]
fn the_window_has_room_for_what_may_be_mapped() {
    let asked = DaxOptions {
        window_bytes: 4 << 30,
        ..Default::default()
    };
    assert_eq!(asked.offered_bytes(), 512 << 20);
    let small = DaxOptions {
        window_bytes: 64 << 20,
        ..asked.clone()
    };
    assert_eq!(small.offered_bytes(), 64 << 20);
    let odd = DaxOptions {
        window_bytes: 6 << 20,
        ..asked.clone()
    };
    assert_eq!(odd.offered_bytes(), 4 << 20);
    let unlimited = DaxOptions {
        max_maps: None,
        ..asked.clone()
    };
    assert_eq!(unlimited.offered_bytes(), 4 << 30);
    let never = DaxOptions {
        mode: DaxMode::Never,
        ..asked
    };
    assert_eq!(never.offered_bytes(), 0);
}

#[test]
fn executables_stay_executable_on_the_host_where_an_upgrade_is_possible() {
    let options = DaxOptions::default();
    assert!(options.writable_from_the_start(0o644, &PLAIN));
    assert!(!options.writable_from_the_start(0o755, &PLAIN));
    let can = Capabilities {
        replace: false,
        ..PLAIN
    };
    assert!(options.writable_from_the_start(0o755, &can));
}

#[test]
fn reasons_have_a_name_each() {
    let all = [
        NoDax::Off,
        NoDax::NotRegular,
        NoDax::Small,
        NoDax::Executable,
        NoDax::Excluded,
        NoDax::NotIncluded,
        NoDax::ReadOnlyShare,
        NoDax::PastEndOfFile,
        NoDax::NotWritable,
        NoDax::CopiesUp,
        NoDax::NotMappable,
        NoDax::Sparse,
        NoDax::Wasted,
    ];
    let indices: Vec<usize> = all.iter().map(|reason| reason.reason()).collect();
    assert_eq!(indices, (0..NoDax::REASONS.len()).collect::<Vec<_>>());
}

#[test]
fn the_policy_in_words() {
    let options = DaxOptions {
        names: names(&["*.bin", "data/**"], &["*.tmp"]),
        ..Default::default()
    };
    let lines = options.describe(&WRITABLE_ONLY);
    assert_eq!(lines[0], "regular files of 128K and more");
    assert!(lines[1].starts_with("no executables: the front end maps writable only"));
    let names = [
        "only what matches *.bin or data/**",
        "nothing that matches *.tmp",
    ];
    assert_eq!(lines[2..4], names);
    assert_eq!(
        lines.len(),
        4,
        "an operator who names files means those with holes too"
    );
    let lines = DaxOptions::default().describe(&WRITABLE_ONLY);
    assert!(lines[2].starts_with("no files with holes: the front end maps large pages"));
    let all = DaxOptions {
        mode: DaxMode::Always,
        ..Default::default()
    };
    assert_eq!(all.describe(&PLAIN), ["regular files of any size"]);
    let lines = |options: &DaxOptions, can| options.describe(can).join("; ");
    let readonly = DaxOptions {
        readonly: true,
        ..all.clone()
    };
    let none = lines(&readonly, &WRITABLE_ONLY);
    assert!(
        none.starts_with("no file: the share is read-only"),
        "{none}"
    );
    let unpadded = Capabilities {
        past_eof: false,
        ..PLAIN
    };
    let pages = lines(&readonly, &unpadded);
    assert!(pages.contains("only files that are whole pages"), "{pages}");
    let none = lines(&all, &unpadded);
    assert!(none.starts_with("no file: the front end refuses"), "{none}");
    let never = DaxOptions {
        mode: DaxMode::Never,
        ..all
    };
    assert_eq!(lines(&never, &PLAIN), "no file: DAX is off for this share");
}

#[test]
fn sizes_are_said_as_the_flag_takes_them() {
    for (min_file_bytes, text) in [
        (1, "1 bytes"),
        (64 << 10, "64K"),
        (3 << 20, "3M"),
        (1 << 30, "1G"),
    ] {
        let options = DaxOptions {
            min_file_bytes,
            ..Default::default()
        };
        let said = format!("regular files of {text} and more");
        assert_eq!(options.describe(&PLAIN), [said]);
    }
}
