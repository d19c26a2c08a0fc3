//! What a subtask's part of a checkpoint is, and how parts are dealt out again.

use pelton_core::RequestRun;
use pelton_core::id::InstanceId;
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::pending::SavedLane;
use crate::sink::Staged;
use crate::source::Split;
use crate::topology::route;

/// One subtask's part of a checkpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Splits that were read to their end: id and version.
    pub(crate) done: Vec<(u64, String)>,
    /// Splits that are read in part.
    pub(crate) open: Vec<OpenSplit>,
    /// A call's counters and pending rows.
    pub(crate) lanes: Vec<SavedLane>,
    /// Which instances hold its unended requests; the others were not sent. For the record.
    pub(crate) held: Vec<(RequestRun, InstanceId)>,
    /// Input that the barrier overtook.
    pub(crate) queued: Vec<Batch>,
    /// Output that the barrier overtook, by the stage's output.
    pub(crate) unsent: Vec<(usize, Batch)>,
    /// Output that becomes visible when the checkpoint is complete.
    pub(crate) staged: Vec<Staged>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OpenSplit {
    pub(crate) split: Split,
    pub(crate) position: u64,
    /// Nothing is left to read, only to send.
    pub(crate) ended: bool,
    /// What was read before the position and not sent.
    #[serde(skip)]
    pub(crate) unsent: Vec<(usize, Batch)>,
}

/// Deals the parts of a stage's old subtasks out to its new ones, however many there were and are. All that belongs to one
/// split goes to one subtask, and keeps its order.
pub(crate) fn deal(parts: Vec<State>, subtasks: usize) -> Vec<State> {
    let mut dealt: Vec<State> = (0..subtasks).map(|_| State::default()).collect();
    let mut next = 0;
    for part in parts {
        dealt[0].done.extend(part.done);
        for open in part.open {
            dealt[next % subtasks].open.push(open);
            next += 1;
        }
        for lane in part.lanes {
            dealt[route(lane.split, subtasks)].lanes.push(lane);
        }
        for batch in part.queued {
            dealt[route(batch.split, subtasks)].queued.push(batch);
        }
        for (output, batch) in part.unsent {
            dealt[route(batch.split, subtasks)].unsent.push((output, batch));
        }
    }
    dealt
}
