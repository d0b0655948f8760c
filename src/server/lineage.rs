//! Which former lives of this node left their memory to the present one.
//!
//! A holder that was evicted by mistake comes back as a new member, with its mirrors still in
//! memory. They may be all that is left of a lost owner's checkpoints, and a recovery asks for them
//! by the life that held them ([`crate::recovery::choose`]). The list lies beside the
//! regions and is gone with them; after a restart of the machine it counts no more, because what
//! lies on a disk then may be older than the mark that lies beside it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::state_file::BootId;
use crate::membership::NodeId;

const LINEAGE_FILE: &str = "lineage.json";
/// Older lives are forgotten: no run of holders goes back so far.
const LIVES_MAX: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    boot: BootId,
    /// The oldest first.
    lives: Vec<NodeId>,
}

/// The former lives whose memory this node still has.
#[derive(Debug)]
pub(super) struct Lineage {
    path: PathBuf,
    recorded: Recorded,
}

impl Lineage {
    /// What the directory's former lives left. Nothing, if that was before the machine's last
    /// start, or cannot be read.
    pub(super) fn open(dir: &Path, boot: BootId) -> Self {
        let path = dir.join(LINEAGE_FILE);
        let read = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let recorded = read.filter(|recorded: &Recorded| recorded.boot == boot);
        let recorded = recorded.unwrap_or(Recorded { boot, lives: Vec::new() });
        Self { path, recorded }
    }

    /// A life has ended and the next one has its memory.
    ///
    /// # Errors
    /// It could not be written. Nothing changed.
    pub(super) fn inherit(&mut self, life: NodeId) -> io::Result<()> {
        let mut lives = self.recorded.lives.clone();
        lives.push(life);
        lives.drain(..lives.len().saturating_sub(LIVES_MAX));
        let recorded = Recorded { boot: self.recorded.boot, lives };
        let temporary = self.path.with_extension("tmp");
        fs::write(&temporary, serde_json::to_vec_pretty(&recorded)?)?;
        fs::rename(&temporary, &self.path)?;
        self.recorded = recorded;
        Ok(())
    }

    /// Whether this node has the memory of that life.
    pub(super) fn includes(&self, life: &NodeId) -> bool {
        self.recorded.lives.contains(life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;

    fn life(incarnation: u64) -> NodeId {
        NodeId { name: Name::new("b").unwrap(), incarnation }
    }

    #[test]
    fn former_lives_count_until_the_machine_restarts_or_the_directory_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let boot = BootId::parse("00000000-0000-0000-0000-000000000001").unwrap();
        let mut lineage = Lineage::open(dir.path(), boot);
        assert!(!lineage.includes(&life(1)));
        lineage.inherit(life(1)).unwrap();
        assert!(lineage.includes(&life(1)));
        let again = Lineage::open(dir.path(), boot);
        assert!(again.includes(&life(1)) && !again.includes(&life(2)));

        let next_boot = BootId::parse("00000000-0000-0000-0000-000000000002").unwrap();
        assert!(!Lineage::open(dir.path(), next_boot).includes(&life(1)));
        fs::remove_file(dir.path().join(LINEAGE_FILE)).unwrap();
        assert!(!Lineage::open(dir.path(), boot).includes(&life(1)));
    }

    #[test]
    fn the_list_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let boot = BootId::parse("00000000-0000-0000-0000-000000000001").unwrap();
        let mut lineage = Lineage::open(dir.path(), boot);
        for incarnation in 0..=LIVES_MAX as u64 {
            lineage.inherit(life(incarnation)).unwrap();
        }
        assert!(!lineage.includes(&life(0)) && lineage.includes(&life(1)));
    }
}
