//! A front end that announces what it maps in the memory table, as VMMs with
//! a memory listener do: region by region, or by whole tables that stop when
//! they are full. The tests are the guest: they see memory and files.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use daxwindow_shared::fuse::flags::InitFlags;
use daxwindow_shared::fuse::{
    EntryOut, InitIn, NO_HANDLE, Opcode, OpenIn, OpenOut, OutHeader, ROOT_ID, SetupMappingIn,
};
use parking_lot::Mutex;
use rustix::fs::OFlags;
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserMMap, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use crate::common::{Daemon, PATIENCE, RANGE, attach_soon};
use crate::driver::{self, Driver, SIZE, SPAN};

/// hiprio and one request queue.
const QUEUES: usize = 2;
/// Bytes of the guest's own memory, at address 0.
pub(super) const RAM: u64 = 4 << 20;
/// Where a test may put what it likes, behind the rings.
pub(super) const FREE: u64 = SPAN * QUEUES as u64;
/// Where the window is in guest physical memory.
pub(super) const WINDOW: u64 = 1 << 32;
/// Where further memory may be announced.
pub(super) const ELSEWHERE: u64 = 1 << 40;
/// Regions of a whole table.
const FULL: usize = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// A descriptor: address, bytes, whether the device writes there.
pub(super) type Buffer = (u64, u32, bool);

pub(super) struct Vmm {
    pub(super) front: Frontend,
    pub(super) driver: Driver,
    pub(super) ram: File,
    table: Arc<Table>,
    kicks: [EventFd; QUEUES],
    calls: [EventFd; QUEUES],
}

/// The memory table as the front end has it.
struct Table {
    front: Mutex<Frontend>,
    /// A region and the file that keeps it.
    regions: Mutex<Vec<(VhostUserMemoryRegionInfo, OwnedFd)>>,
    by_slots: bool,
}

impl Table {
    /// Adds a region and tells the device, if it can be told.
    fn add(&self, gpa: u64, bytes: u64, fd: OwnedFd, offset: u64) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: gpa,
            memory_size: bytes,
            userspace_addr: gpa + (1 << 44),
            mmap_offset: offset,
            mmap_handle: fd.as_raw_fd(),
        };
        self.regions.lock().push((region, fd));
        if self.by_slots {
            self.front.lock().add_mem_region(&region).expect("taken");
        } else {
            self.send_whole();
        }
    }

    fn remove(&self, gpa: u64, bytes: u64) {
        let mut regions = self.regions.lock();
        let is_it =
            |r: &VhostUserMemoryRegionInfo| (r.guest_phys_addr, r.memory_size) == (gpa, bytes);
        let at = regions.iter().position(|(region, _)| is_it(region));
        let gone = regions.swap_remove(at.expect("mapped"));
        drop(regions);
        if self.by_slots {
            self.front.lock().remove_mem_region(&gone.0).expect("known");
        } else {
            self.send_whole();
        }
    }

    /// Nothing is sent while there are too many.
    fn send_whole(&self) {
        let regions = self.regions.lock();
        let mut table: Vec<_> = regions.iter().map(|(region, _)| *region).collect();
        table.sort_by_key(|region| region.guest_phys_addr);
        if table.len() <= FULL {
            self.front.lock().set_mem_table(&table).expect("taken");
        }
    }
}

/// What was mapped or unmapped and is yet to be announced.
enum Change {
    Add(VhostUserMMap, OwnedFd),
    Remove(VhostUserMMap),
}

/// Acknowledges first; the change takes effect, and is announced, afterwards.
struct Maps {
    live: Mutex<Vec<(u64, u64)>>,
    changes: Sender<Change>,
}

impl VhostUserFrontendReqHandler for Maps {
    fn shmem_map(&self, req: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        // SAFETY: `fd` is open for as long as it is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let (offset, len) = (req.shm_offset, req.len);
        let mut live = self.live.lock();
        let overlaps = live
            .iter()
            .any(|&(o, l)| offset < o + l && o < offset + len);
        let access = rustix::fs::fcntl_getfl(fd)? & OFlags::ACCMODE;
        if overlaps || access != OFlags::RDWR {
            return Ok(1);
        }
        live.push((offset, len));
        let change = Change::Add(*req, rustix::io::dup(fd)?);
        self.changes.send(change).map_err(std::io::Error::other)?;
        Ok(0)
    }

    fn shmem_unmap(&self, req: &VhostUserMMap) -> HandlerResult<u64> {
        let mut live = self.live.lock();
        let range = (req.shm_offset, req.len);
        let Some(at) = live.iter().position(|known| *known == range) else {
            return Ok(1);
        };
        live.swap_remove(at);
        let change = Change::Remove(*req);
        self.changes.send(change).map_err(std::io::Error::other)?;
        Ok(0)
    }
}

/// Serves the back end. The next message is read once the last change is
/// announced, as in a VMM with one main loop.
fn attend(mut handler: FrontendReqHandler<Maps>, table: &Table, changes: &Receiver<Change>) {
    while handler.handle_request().is_ok() {
        for change in changes.try_iter() {
            match change {
                Change::Add(req, fd) => {
                    table.add(WINDOW + req.shm_offset, req.len, fd, req.fd_offset);
                }
                Change::Remove(req) => table.remove(WINDOW + req.shm_offset, req.len),
            }
        }
    }
}

impl Vmm {
    /// Connects to `daemon`, starts the rings and the session.
    pub(super) fn connect(daemon: &Daemon, by_slots: bool) -> Vmm {
        drop(attach_soon(daemon));
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The doorman of the client before may still turn us away.
            if let Some(vmm) = Vmm::try_connect(daemon, by_slots) {
                return vmm;
            }
            assert!(Instant::now() < deadline, "never let in");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn try_connect(daemon: &Daemon, by_slots: bool) -> Option<Vmm> {
        let (mut vmm, handler, announcements) = Vmm::try_attach(daemon, by_slots)?;
        let announcer = vmm.table.clone();
        // Ends with the test's process: the handler holds both ends of its
        // socket.
        thread::spawn(move || attend(handler, &announcer, &announcements));
        vmm.init();
        Some(vmm)
    }

    /// Connects, has the device ask for a first map, and hangs up without an
    /// answer to that. The channel stays open for as long as what is returned.
    pub(super) fn leave_unanswered(daemon: &Daemon) -> impl Sized + use<> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((mut vmm, handler, _)) = Vmm::try_attach(daemon, false) {
                vmm.ask_for_a_session(&handler, deadline);
                return handler;
            }
            assert!(Instant::now() < deadline, "never let in");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends INIT, and returns when it is answered or waits for the channel.
    fn ask_for_a_session(&mut self, handler: &FrontendReqHandler<Maps>, deadline: Instant) {
        let request = self.request(Opcode::Init, 0, init_in().as_bytes());
        let (at, ..) = self.reply_buffer();
        self.driver.descriptor(0, request.0, request.1, NEXT, 1);
        self.driver.descriptor(1, at, 8192, WRITE, 0);
        self.driver.offer(0);
        self.kick(1);
        // SAFETY: the handler owns its descriptor for as long as it is borrowed.
        let channel = unsafe { BorrowedFd::borrow_raw(handler.as_raw_fd()) };
        let is_asked = || rustix::io::ioctl_fionread(channel).is_ok_and(|bytes| bytes > 0);
        while !is_asked() && self.driver.used() == 0 {
            assert!(Instant::now() < deadline, "neither asked nor answered");
            thread::yield_now();
        }
    }

    /// Connects and starts the rings.
    fn try_attach(
        daemon: &Daemon,
        by_slots: bool,
    ) -> Option<(Vmm, FrontendReqHandler<Maps>, Receiver<Change>)> {
        let mut front = Frontend::connect(daemon.socket(), QUEUES as u64).ok()?;
        front.set_owner().ok()?;
        let features = front.get_features().ok()?;
        let ours = 1 << 32 | 1 << 28 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let mut protocol = front.get_protocol_features().ok()?;
        if !by_slots {
            protocol.remove(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);
        }
        front.set_protocol_features(protocol).ok()?;
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        front.set_features(features & ours).ok()?;
        if protocol.contains(VhostUserProtocolFeatures::SHMEM) {
            front.get_shmem_config().ok()?;
        }

        let ram = tempfile::tempfile_in("/dev/shm").expect("a file");
        ram.set_len(RAM).expect("sized");
        let offset = FileOffset::new(ram.try_clone().expect("clone"), 0);
        let mem = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            RAM as usize,
            Some(offset),
        )])
        .expect("mapped");
        let table = Arc::new(Table {
            front: Mutex::new(front.clone()),
            regions: Mutex::default(),
            by_slots,
        });
        let (changes, announcements) = channel();
        let maps = Arc::new(Maps {
            live: Mutex::default(),
            changes,
        });
        let mut handler = FrontendReqHandler::new(maps).expect("socket pair");
        handler.set_reply_ack_flag(true);
        front
            .set_backend_request_fd(&handler.get_tx_raw_fd())
            .expect("taken");

        let ram_fd = OwnedFd::from(ram.try_clone().expect("clone"));
        table.regions.lock().push((
            VhostUserMemoryRegionInfo {
                guest_phys_addr: 0,
                memory_size: RAM,
                userspace_addr: 1 << 44,
                mmap_offset: 0,
                mmap_handle: ram_fd.as_raw_fd(),
            },
            ram_fd,
        ));
        table.send_whole();
        let vmm = Vmm {
            driver: Driver::new(mem, SPAN),
            kicks: [(); QUEUES].map(|()| EventFd::new(0).expect("eventfd")),
            calls: [(); QUEUES].map(|()| EventFd::new(0).expect("eventfd")),
            front,
            ram,
            table,
        };
        vmm.start_ring(0, 0);
        vmm.start_ring(1, SPAN);
        Some((vmm, handler, announcements))
    }

    /// Starts queue `index` with its rings at `base`, laid out as the driver
    /// does.
    pub(super) fn start_ring(&self, index: usize, base: u64) {
        let [table, used, avail] = Driver::new(self.driver.mem.clone(), base).rings();
        let at = |gpa| (1 << 44) + gpa;
        let rings = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: at(table),
            used_ring_addr: at(used),
            avail_ring_addr: at(avail),
            log_addr: None,
        };
        self.front.set_vring_num(index, SIZE).expect("taken");
        self.front.set_vring_base(index, 0).expect("taken");
        self.front.set_vring_addr(index, &rings).expect("taken");
        self.start_again(index);
    }

    /// Starts queue `index` where its rings were put.
    pub(super) fn start_again(&self, index: usize) {
        let (kick, call) = (&self.kicks[index], &self.calls[index]);
        self.front.set_vring_call(index, call).expect("taken");
        self.front.set_vring_kick(index, kick).expect("taken");
        self.front
            .clone()
            .set_vring_enable(index, true)
            .expect("taken");
    }

    fn init(&mut self) {
        let (error, _) = self.ask(Opcode::Init, 0, init_in().as_bytes());
        assert_eq!(error, 0, "INIT");
    }

    /// Queue `index` signals the guest by `call` from now on.
    pub(super) fn signal_by(&self, index: usize, call: &EventFd) {
        self.front.set_vring_call(index, call).expect("taken");
    }

    /// Offers the chain at 0, and waits for nothing.
    pub(super) fn send(&mut self, chain: &[Buffer]) {
        self.describe(chain);
        self.driver.offer(0);
        self.kick(1);
    }

    /// Announces `file` as memory at `gpa`.
    pub(super) fn add_memory(&self, gpa: u64, bytes: u64, file: &File) {
        let fd = OwnedFd::from(file.try_clone().expect("clone"));
        self.table.add(gpa, bytes, fd, 0);
    }

    /// Regions that there are, whatever the device was told.
    pub(super) fn regions(&self) -> usize {
        self.table.regions.lock().len()
    }

    /// Rings a queue.
    pub(super) fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).expect("kicked");
    }

    /// Stops a queue; what the device answers.
    pub(super) fn stop(&self, queue: usize) -> Option<u32> {
        self.front.clone().get_vring_base(queue).ok()
    }

    /// Offers a chain and waits until it is handed back; the used length.
    pub(super) fn give(&mut self, chain: &[Buffer]) -> u32 {
        self.describe(chain);
        self.offer()
    }

    fn describe(&self, chain: &[Buffer]) {
        let last = chain.len() - 1;
        for (index, &(addr, len, writable)) in chain.iter().enumerate() {
            let more = if index < last { NEXT } else { 0 };
            let flags = more | if writable { WRITE } else { 0 };
            let (at, next) = (index as u16, index as u16 + 1);
            self.driver.descriptor(at, addr, len, flags, next);
        }
    }

    /// Offers the chain at 0, as it is in the table.
    pub(super) fn offer(&mut self) -> u32 {
        let before = self.driver.used();
        self.driver.offer(0);
        self.kick(1);
        let deadline = Instant::now() + PATIENCE;
        while self.driver.used() == before {
            assert!(Instant::now() < deadline, "never handed back");
            thread::yield_now();
        }
        self.driver.used_element(before).1
    }

    /// Puts a request at [`FREE`] and answers its buffer; replies may go to
    /// [`Vmm::reply_buffer`].
    pub(super) fn request(&self, opcode: Opcode, nodeid: u64, body: &[u8]) -> Buffer {
        let bytes = driver::request(opcode, nodeid, body);
        self.put(FREE, &bytes);
        (FREE, bytes.len() as u32, false)
    }

    /// Room for a reply's header.
    pub(super) fn reply_buffer(&self) -> Buffer {
        self.put(FREE + (1 << 20), &[0xee; 4096]);
        (FREE + (1 << 20), 16, true)
    }

    /// Writes to guest memory.
    pub(super) fn put(&self, addr: u64, bytes: &[u8]) {
        use vm_memory::Bytes;
        let at = GuestAddress(addr);
        self.driver.mem.write_slice(bytes, at).expect("inside");
    }

    /// Reads guest memory.
    pub(super) fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        use vm_memory::Bytes;
        let mut out = vec![0; len];
        let at = GuestAddress(addr);
        self.driver.mem.read_slice(&mut out, at).expect("inside");
        out
    }

    /// The header in [`Vmm::reply_buffer`]: `len` and the positive errno.
    pub(super) fn replied(&self) -> (u32, i32) {
        let bytes = self.get(FREE + (1 << 20), 16);
        let header = OutHeader::read_from_bytes(&bytes).expect("a header");
        (header.len, -header.error)
    }

    /// A whole request in good buffers: the positive errno and the body.
    pub(super) fn ask(&mut self, opcode: Opcode, nodeid: u64, body: &[u8]) -> (i32, Vec<u8>) {
        let request = self.request(opcode, nodeid, body);
        let (at, _, _) = self.reply_buffer();
        let used = self.give(&[request, (at, 8192, true)]);
        assert!(used >= 16, "no answer");
        (self.replied().1, self.get(at + 16, used as usize - 16))
    }

    /// Looks up and opens read-write: node and handle.
    pub(super) fn open(&mut self, name: &str) -> (u64, u64) {
        let (error, body) = self.ask(Opcode::Lookup, ROOT_ID, format!("{name}\0").as_bytes());
        assert_eq!(error, 0, "{name}");
        let entry = EntryOut::read_from_bytes(&body).expect("an entry");
        let args = OpenIn {
            flags: libc::O_RDWR as u32,
            open_flags: 0,
        };
        let (error, body) = self.ask(Opcode::Open, entry.nodeid, args.as_bytes());
        assert_eq!(error, 0, "{name}");
        let open = OpenOut::read_from_bytes(&body).expect("a handle");
        (entry.nodeid, open.fh)
    }

    /// Maps the first range of a file at slot `slot` of the window.
    pub(super) fn map(&mut self, nodeid: u64, slot: u64) -> i32 {
        let args = SetupMappingIn {
            fh: NO_HANDLE,
            foffset: 0,
            len: RANGE,
            flags: 3,
            moffset: slot * RANGE,
        };
        self.ask(Opcode::Setupmapping, nodeid, args.as_bytes()).0
    }
}

fn init_in() -> InitIn {
    let (flags, flags2) = InitFlags::all().to_words();
    InitIn {
        major: 7,
        minor: 45,
        flags,
        flags2,
        ..Default::default()
    }
}

impl Vmm {
    /// Hangs up: the threads that announce hold the connection too.
    pub(super) fn disconnect(&self) {
        // SAFETY: `front` is open for as long as `self` is.
        let stream = unsafe { BorrowedFd::borrow_raw(self.front.as_raw_fd()) };
        let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Both);
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.disconnect();
    }
}
