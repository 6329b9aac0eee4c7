//! Two guests on one directory, each with a daemon of its own: what one stores
//! through a shared mapping, the other reads, with no system call in between.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions, example};

use crate::counted::Counted;

const FILE: u64 = (5 << 20) + 123;

fn boot(folder: &Path) -> Vm {
    let mut share = ShareOptions::new(folder, Dax::Always);
    share.window_bytes = 64 << 20;
    let mut options = VmOptions::new(vec![share]);
    options.memory_bytes = 256 << 20;
    options.programs = vec![example("guest_probe").expect("built")];
    Vm::boot(&options).expect("boots")
}

fn run(vm: &mut Vm, script: &str) -> String {
    let output = vm.sh(script).and_then(|output| output.ok());
    output.unwrap_or_else(|error| panic!("{script}: {error:#}"))
}

#[test]
fn a_store_in_one_guest_is_a_load_in_another() {
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("board");
    let file = File::create_new(&path).expect("made");
    file.set_len(FILE).expect("grown");
    let (mut one, mut other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| boot(folder.path()));
        (boot(folder.path()), other.join().expect("boots"))
    });

    // The reader has its mapping, and has seen what was there before, when the
    // writer stores: it looks on at the same mapping until the text is there.
    let last = FILE - 16;
    let middle = (2 << 20) - 4;
    for (round, place) in [0, middle, last].into_iter().enumerate() {
        for turn in 0..2 {
            let text = format!("round{round}turn{turn}");
            let (writer, reader) = match turn {
                0 => (&mut one, &mut other),
                _ => (&mut other, &mut one),
            };
            let start = Instant::now();
            std::thread::scope(|scope| {
                let awaits = format!(
                    "guest_probe await /mnt/board {place} {text} --seconds 60 & p=$!\n\
                     until grep -q /mnt/board /proc/$p/maps; do usleep 1000; done\n\
                     touch /mnt/{text}; wait $p"
                );
                let waits = folder.path().join(&text);
                let reader = scope.spawn(move || run(reader, &awaits));
                while !waits.exists() {
                    assert!(!reader.is_finished(), "the reader ended before it waited");
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                run(
                    writer,
                    &format!("guest_probe store /mnt/board {place} {text}"),
                );
                reader.join().expect("the text arrived");
            });
            let mut seen = vec![0; text.len()];
            file.read_exact_at(&mut seen, place).expect("read");
            assert_eq!(seen, text.as_bytes(), "on the host");
            println!("{text} at {place}: {:.1?}", start.elapsed());
        }
    }
    assert_eq!(file.metadata().expect("there").len(), FILE);

    // What the host writes is seen in both, and what one appends in the other.
    file.write_all_at(b"fromhost", 4096).expect("written");
    run(&mut one, "printf appended >>/mnt/board");
    for vm in [&mut one, &mut other] {
        assert_eq!(run(vm, "guest_probe load /mnt/board 4096 8"), "fromhost");
    }
    let tail = "sleep 1.1; tail -c 8 /mnt/board";
    assert_eq!(run(&mut other, tail), "appended");

    for vm in [&mut one, &mut other] {
        let counted = Counted::by(vm, 0);
        assert_eq!(counted.requests("Read"), 0, "{counted:?}");
        assert!(counted.window("setups") >= 3, "{counted:?}");
        assert_eq!(counted.requests("Fsync"), 0, "nobody synced: {counted:?}");
        vm.shutdown().expect("powers off");
        assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
    }
}
