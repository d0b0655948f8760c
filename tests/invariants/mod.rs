//! The invariants, by the names that the models, the simulation and the mutants call them. What each
//! says in full is in `docs/protocol.md`.

pub(crate) const I1: &str = "I1 an acknowledged version survives";
pub(crate) const I2: &str = "I2 no torn read";
pub(crate) const I3: &str = "I3 a recovered version is at least every acknowledged one";
pub(crate) const I4: &str = "I4 one value per view number";
pub(crate) const I5: &str = "I5 the last acknowledged slot is not overwritten";
pub(crate) const I6: &str = "I6 fence before recovery read";
pub(crate) const I7: &str = "I7 acknowledgements only at or above the floor";
pub(crate) const I8: &str = "I8 nobody votes after amnesia";
/// Of I3 and I7, and the shortest way to see them broken.
pub(crate) const ONE_MIRROR: &str = "no two live mirrors accepted for one epoch";
pub(crate) const MAJORITY: &str = "a minority installs nothing";
