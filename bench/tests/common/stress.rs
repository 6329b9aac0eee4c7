//! stress-ng's file system stressors, and its own summary of them.

/// Those of stress-ng's file system class that work on a directory, rather
/// than on the kernel's own files. Without fpunch, whose processes punch into
/// each other's data: it fails on the host's tmpfs as well.
const STRESSORS: &str = "access,chdir,chmod,chown,copy-file,dentry,dir,dirdeep,dirmany,dup,\
    fallocate,fcntl,fiemap,file-ioctl,filename,flock,fsize,fstat,getdent,hdd,inode-flags,\
    iomix,lease,link,locka,lockf,lockofd,mknod,mmapfiles,open,rename,revio,seek,sendfile,splice,\
    symlink,sync-file,touch,unlink,utime,xattr";

/// Each stressor for a moment, one after the other, with its own checks, in
/// the working directory.
pub(crate) fn arguments() -> Vec<String> {
    let words = format!(
        "--with {STRESSORS} --sequential 1 --timeout 1s --verify --no-rand-seed \
         --chdir-dirs 64 --dentries 128 --copy-file-bytes 128m --fallocate-bytes 8m \
         --fiemap-bytes 8m --hdd-bytes 8m --iomix-bytes 8m --revio-bytes 8m \
         --sync-file-bytes 8m --temp-path ."
    );
    words.split_whitespace().map(str::to_owned).collect()
}

/// How many stressors passed and were skipped; none may have failed.
pub(crate) fn passed_and_skipped(place: &str, said: &str) -> (usize, usize) {
    let number = |what: &str| -> usize {
        let line = said.lines().find(|line| line.contains(what));
        let count = line.and_then(|line| line.split(what).nth(1)?.split_whitespace().next());
        let count = count.and_then(|count| count.trim_end_matches(':').parse().ok());
        count.unwrap_or_else(|| panic!("{place}: no {what:?} in\n{said}"))
    };
    assert_eq!(number(" failed: "), 0, "{place}:\n{said}");
    (number(" passed: "), number(" skipped: "))
}
