//! Whether the share has DAX, and if not exactly why: decided in one place,
//! where the log line, the status document and people's reports take it from.

use std::fmt;

use super::capabilities::{Capabilities, ProbeError};
use super::policy::{DaxMode, DaxOptions};
use super::whole::{Mapping, NotWhole};
use super::{Dax, DaxOffer};
use crate::padding::{View, ViewTrouble};

/// Whether the guest's files go through the window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DaxVerdict {
    /// No guest has begun a session, so nothing was tried.
    #[default]
    Unknown,
    /// Every regular file.
    On,
    /// Some regular files.
    Some(SomeFiles),
    /// No file.
    Off(DaxOff),
}

/// Which files, where not all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SomeFiles {
    /// Those that the operator's rule chooses; this is the rule in words. A
    /// guest that mounts with `dax=always` asks for all, and gets them.
    ByRule(String),
    /// The front end refuses ranges past the end, and only files of a
    /// read-only share that are whole pages cannot grow.
    WholePages(ViewTrouble),
}

/// Why no file has DAX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DaxOff {
    /// The operator's choice.
    Mode,
    /// The operator gave it no bytes.
    NoWindow,
    /// The front end opened no channel for maps.
    NoChannel,
    /// The front end has not asked for shared memory regions.
    NoRegion,
    /// The operator wants the window in one piece, or none.
    NotWhole(NotWhole),
    /// The front end failed the trial.
    Trial(ProbeError),
    /// The share is read-only and the front end can only map writable.
    ReadOnlyShare,
    /// The front end refuses ranges past the end, and files may grow.
    PastEndOfFile(ViewTrouble),
    /// The front end stopped answering.
    ChannelLost,
}

impl DaxVerdict {
    /// `unknown`, `on`, `some` or `off`.
    pub fn name(&self) -> &'static str {
        match self {
            DaxVerdict::Unknown => "unknown",
            DaxVerdict::On => "on",
            DaxVerdict::Some(_) => "some",
            DaxVerdict::Off(_) => "off",
        }
    }

    /// A word for programs: which arm it is, down to the cause.
    pub fn reason(&self) -> &'static str {
        match self {
            DaxVerdict::Unknown => "no-session",
            DaxVerdict::On => "every-file",
            DaxVerdict::Some(SomeFiles::ByRule(_)) => "rule",
            DaxVerdict::Some(SomeFiles::WholePages(_)) => "whole-pages",
            DaxVerdict::Off(off) => match off {
                DaxOff::Mode => "mode",
                DaxOff::NoWindow => "no-window",
                DaxOff::NoChannel => "no-channel",
                DaxOff::NoRegion => "no-region",
                DaxOff::NotWhole(_) => "not-whole",
                DaxOff::Trial(_) => "trial",
                DaxOff::ReadOnlyShare => "read-only-share",
                DaxOff::PastEndOfFile(_) => "past-end-of-file",
                DaxOff::ChannelLost => "channel-lost",
            },
        }
    }

    /// What follows from options and capabilities; `view` is why there is no
    /// padded view, if there is none.
    pub(super) fn of(
        options: &DaxOptions,
        can: &Capabilities,
        view: Option<ViewTrouble>,
    ) -> DaxVerdict {
        if options.readonly && !can.readonly_fd {
            return DaxVerdict::Off(DaxOff::ReadOnlyShare);
        }
        if !can.maps_past_eof() {
            let trouble = view.unwrap_or(ViewTrouble::Refused);
            return match options.readonly {
                true => DaxVerdict::Some(SomeFiles::WholePages(trouble)),
                false => DaxVerdict::Off(DaxOff::PastEndOfFile(trouble)),
            };
        }
        match options.mode {
            DaxMode::Never => DaxVerdict::Off(DaxOff::Mode),
            DaxMode::Always if options.names.is_empty() => DaxVerdict::On,
            DaxMode::Inode | DaxMode::Always => {
                DaxVerdict::Some(SomeFiles::ByRule(options.describe(can).join("; ")))
            }
        }
    }

    /// What is known before any front end is.
    fn of_options(options: &DaxOptions) -> DaxVerdict {
        match options.mode {
            _ if options.window_bytes == 0 => DaxVerdict::Off(DaxOff::NoWindow),
            DaxMode::Never => DaxVerdict::Off(DaxOff::Mode),
            DaxMode::Inode | DaxMode::Always => DaxVerdict::Unknown,
        }
    }
}

impl fmt::Display for DaxVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DaxVerdict::Unknown => f.write_str("no guest has mounted the share yet"),
            DaxVerdict::On => f.write_str("every regular file"),
            DaxVerdict::Some(some) => some.fmt(f),
            DaxVerdict::Off(off) => off.fmt(f),
        }
    }
}

impl fmt::Display for SomeFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SomeFiles::ByRule(rule) => write!(f, "{rule} (all, if the guest asks for all)"),
            SomeFiles::WholePages(trouble) => write!(
                f,
                "only files that are whole pages: the front end refuses ranges past the end of \
                 a file, and {trouble}"
            ),
        }
    }
}

impl fmt::Display for DaxOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DaxOff::Mode => f.write_str("switched off by --dax never"),
            DaxOff::NoWindow => f.write_str("--dax-window is 0"),
            DaxOff::NoChannel => f.write_str(
                "the front end has no shared memory regions: it opened no channel for maps",
            ),
            DaxOff::NoRegion => f.write_str(
                "the front end has no shared memory regions: it has not asked for them \
                 (GET_SHMEM_CONFIG)",
            ),
            DaxOff::NotWhole(why) => write!(
                f,
                "the window cannot be in one piece, as --dax-mapping whole wants it: {why}"
            ),
            DaxOff::Trial(error) => write!(f, "the front end failed the trial: {error}"),
            DaxOff::ReadOnlyShare => f.write_str(
                "the share is read-only and the front end can only map writable, so that the \
                 guest could write",
            ),
            DaxOff::PastEndOfFile(trouble) => write!(
                f,
                "the front end refuses ranges past the end of a file, which nearly every file's \
                 last range is, and {trouble}"
            ),
            DaxOff::ChannelLost => f.write_str(
                "the front end gave no answer in time and is asked no more; it must reconnect",
            ),
        }
    }
}

impl Dax {
    /// Whether the share has DAX, and why not.
    pub fn verdict(&self) -> DaxVerdict {
        let lost = |connected: &super::Connected| connected.front_end.is_gone();
        if self.connected.load().as_deref().is_some_and(lost) {
            return DaxVerdict::Off(DaxOff::ChannelLost);
        }
        let view = self
            .connected
            .load()
            .as_deref()
            .and_then(|c| c.view.clone());
        if let Some(Err(trouble)) = view.map(View::working) {
            return DaxVerdict::Off(DaxOff::PastEndOfFile(trouble));
        }
        match self.verdict.lock().clone() {
            DaxVerdict::Unknown => DaxVerdict::of_options(&self.options),
            known => known,
        }
    }

    /// Bytes of window that the operator asked for.
    pub fn asked_bytes(&self) -> u64 {
        self.options.window_bytes
    }

    /// Why the window offered is smaller than that, if it is.
    pub fn less_because(&self) -> Option<String> {
        let offered = self.window_bytes();
        let maps = self.options.max_maps?;
        if offered == 0 || offered == self.asked_bytes() {
            return None;
        }
        if self.options.mapping == Mapping::Whole {
            return Some("a power of two".to_owned());
        }
        Some(format!(
            "a power of two, and room for no more than {maps} ranges, which is what the VMM's \
             memory slots may hold (--slot-reserve, --no-slot-limit; --dax-mapping whole has no \
             such limit)"
        ))
    }

    /// Whether the front end opened a channel for maps.
    pub fn has_front_end(&self) -> bool {
        self.front_end.lock().is_some()
    }

    /// Regions of the front end's memory table.
    pub fn memory_regions(&self) -> usize {
        self.table.len()
    }

    /// Decides against DAX for the session that begins.
    pub(super) fn decline(&self, off: DaxOff) -> DaxOffer {
        self.conclude(DaxVerdict::Off(off));
        DaxOffer::default()
    }

    /// Keeps the verdict and logs it.
    pub(super) fn conclude(&self, verdict: DaxVerdict) {
        let name = verdict.name();
        match &verdict {
            // The operator's choice, or a VMM's device that never has a window.
            DaxVerdict::Off(
                DaxOff::Mode | DaxOff::NoWindow | DaxOff::NoChannel | DaxOff::NoRegion,
            )
            | DaxVerdict::Unknown
            | DaxVerdict::On
            | DaxVerdict::Some(SomeFiles::ByRule(_)) => {
                tracing::info!("dax: {name}: {verdict}");
            }
            // What the operator asked for and does not get.
            DaxVerdict::Some(SomeFiles::WholePages(_)) | DaxVerdict::Off(_) => {
                tracing::warn!("dax: {name}: {verdict}");
            }
        }
        *self.verdict.lock() = verdict;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dax::front_end::{FrontEnd, FrontEndError, ShmemRequest};
    use crate::dax::globs::NameRules;

    const QEMU_LIKE: Capabilities = Capabilities {
        past_eof: false,
        padded: true,
        readonly_fd: false,
        replace: false,
        partial_unmap: false,
        announced: true,
        window_base: Some(1 << 40),
        emulated: false,
    };

    #[test]
    fn the_share_and_the_front_end_decide() {
        let always = DaxOptions {
            mode: DaxMode::Always,
            ..Default::default()
        };
        let of =
            |options: &DaxOptions, can: Capabilities, view| DaxVerdict::of(options, &can, view);
        assert_eq!(of(&always, QEMU_LIKE, None), DaxVerdict::On);
        let readonly = DaxOptions {
            readonly: true,
            ..always.clone()
        };
        assert_eq!(
            of(&readonly, QEMU_LIKE, None),
            DaxVerdict::Off(DaxOff::ReadOnlyShare)
        );
        let bare = Capabilities {
            padded: false,
            ..QEMU_LIKE
        };
        let failed = ViewTrouble::Failed("Operation not permitted".into());
        let verdict = of(&always, bare, Some(failed.clone()));
        assert_eq!(verdict, DaxVerdict::Off(DaxOff::PastEndOfFile(failed)));
        assert!(
            verdict.to_string().contains("Operation not permitted"),
            "{verdict}"
        );
        assert_eq!(
            of(&always, bare, None),
            DaxVerdict::Off(DaxOff::PastEndOfFile(ViewTrouble::Refused))
        );
        let honest = Capabilities {
            readonly_fd: true,
            ..bare
        };
        let verdict = of(&readonly, honest, Some(ViewTrouble::SwitchedOff));
        assert_eq!((verdict.name(), verdict.reason()), ("some", "whole-pages"));
        let verdict = of(&DaxOptions::default(), QEMU_LIKE, None);
        assert_eq!((verdict.name(), verdict.reason()), ("some", "rule"));
        let said = verdict.to_string();
        assert!(
            said.contains("128K") && said.contains("no executables"),
            "{said}"
        );
        let excluding = DaxOptions {
            names: NameRules::new(&[], &["*.tmp".parse().expect("a glob")]).expect("small"),
            ..always
        };
        let verdict = of(&excluding, QEMU_LIKE, None);
        assert_eq!((verdict.name(), verdict.reason()), ("some", "rule"));
        assert!(verdict.to_string().contains("*.tmp"), "{verdict}");
    }

    #[test]
    fn switched_off_is_known_without_a_guest() {
        let never = DaxOptions {
            mode: DaxMode::Never,
            ..Default::default()
        };
        assert_eq!(
            Dax::new(never.clone()).verdict(),
            DaxVerdict::Off(DaxOff::Mode)
        );
        let windowless = DaxOptions {
            window_bytes: 0,
            ..never
        };
        let dax = Dax::new(windowless);
        assert_eq!(dax.verdict(), DaxVerdict::Off(DaxOff::NoWindow));
        let dax = Dax::new(DaxOptions::default());
        assert_eq!(dax.verdict(), DaxVerdict::Unknown);
        dax.init();
        assert_eq!(dax.verdict(), DaxVerdict::Off(DaxOff::NoChannel));
        assert_eq!(dax.verdict().reason(), "no-channel");
    }

    #[test]
    fn a_front_end_that_never_asks_for_regions_is_asked_for_no_map() {
        struct Complains;
        impl FrontEnd for Complains {
            fn request(&self, request: &ShmemRequest<'_>) -> Result<(), FrontEndError> {
                panic!("it has no place for {request:?}");
            }
        }
        let dax = Dax::new(DaxOptions::default());
        dax.set_front_end(Some(Arc::new(Complains)));
        assert_eq!(dax.init(), DaxOffer::default());
        assert_eq!(dax.verdict(), DaxVerdict::Off(DaxOff::NoRegion));
        assert_eq!(dax.verdict().reason(), "no-region");
    }
}
