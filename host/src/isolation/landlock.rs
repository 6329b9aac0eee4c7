//! Landlock: a second fence around the share, where the kernel has it, which
//! holds for paths that somehow lead out of the root, too.

use std::os::fd::{BorrowedFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest that was tried.
const TRIED: ABI = ABI::V7;

/// What may be reached by path.
pub(super) struct Fence<'a> {
    /// Everything below these, but no execution.
    pub trees: &'a [OwnedFd],
    /// Where padded files are opened.
    pub view: Option<BorrowedFd<'a>>,
    /// Other trees may come, which the rules cannot be extended to.
    pub more_trees: bool,
    /// Files are opened by handle. Such a file may have no path at the time,
    /// which makes the kernel refuse what is handled here.
    pub file_handles: bool,
}

/// How much of it holds, in words.
pub(super) fn restrict(fence: &Fence<'_>) -> Result<&'static str, RulesetError> {
    let everything = AccessFs::from_all(TRIED);
    let handled: BitFlags<AccessFs> = match () {
        () if fence.more_trees => AccessFs::Execute.into(),
        () if fence.file_handles => {
            everything & !(AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate)
        }
        () => everything,
    };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(handled)?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    let allowed = handled & !BitFlags::from(AccessFs::Execute);
    if !allowed.is_empty() {
        for tree in fence.trees {
            rules = rules.add_rule(PathBeneath::new(tree, allowed))?;
        }
    }
    let opening = handled & (AccessFs::ReadFile | AccessFs::WriteFile);
    if let Some(view) = fence.view
        && !opening.is_empty()
    {
        rules = rules.add_rule(PathBeneath::new(view, opening))?;
    }
    let words = match () {
        () if fence.more_trees => "network and execution only, as shares may come",
        () if fence.file_handles => "all but opening files, as they are opened by handle",
        () => "on",
    };
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => words,
        RulesetStatus::PartiallyEnforced => "as far as this kernel has it",
        RulesetStatus::NotEnforced => "this kernel has none",
    })
}
