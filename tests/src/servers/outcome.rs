//! What came of the rounds on a server.

use std::time::Duration;

/// Counts and times; nothing is in it that has failed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The server.
    pub name: &'static str,
    /// Rounds done: first patch, second in its place, none.
    pub rounds: u32,
    /// Requests of the load generator, none of which failed.
    pub requests: u64,
    /// Questions that were asked beside, each answered by a version that was right at the time.
    pub asked: u64,
    /// Children that the patched server started anew, and which carried its patch.
    pub born_patched: u32,
    /// How long each load, replacing load and disable took for one process, start to end of the work.
    pub transitions: Vec<Duration>,
    /// The longest pause of each command.
    pub pauses: Vec<Duration>,
    /// Stops of processes and threads.
    pub stops: u64,
    /// All stops of whole processes together.
    pub stopped: Duration,
    /// Throughput of the patched intervals as a part of the unpatched, for each round.
    pub ratios: Vec<f64>,
    /// The same for requests in the server's processor time, which what else the machine does hardly changes.
    pub work_ratios: Vec<f64>,
    /// By how much a process's own memory has grown from the end of the first round to that of the last, at most, in KiB.
    pub grown: u64,
    /// And by how many mappings.
    pub mapped: usize,
    /// Processes whose code is that of the files at the end, byte for byte.
    pub restored: u32,
}

impl Outcome {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            rounds: 0,
            requests: 0,
            asked: 0,
            born_patched: 0,
            transitions: Vec::new(),
            pauses: Vec::new(),
            stops: 0,
            stopped: Duration::ZERO,
            ratios: Vec::new(),
            work_ratios: Vec::new(),
            grown: 0,
            mapped: 0,
            restored: 0,
        }
    }

    /// What the columns of [`Outcome::row`] are.
    pub const HEAD: &str = "| server | rounds | requests | failed | asked beside | wrong | transition, median (max) | longest pause, median (max) | \
                            patched / unpatched, by the clock: median (quartiles) | by processor time | grown | processes restored |\n\
                            |---|---|---|---|---|---|---|---|---|---|---|---|";

    /// A line of a table.
    pub fn row(&self) -> String {
        let time = |times: &[Duration]| {
            let mut ms: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
            format!("{:.1} ms ({:.1})", quantile(&mut ms, 0.5), quantile(&mut ms, 1.0))
        };
        let percent = |ratios: &[f64]| {
            let mut ratios: Vec<f64> = ratios.iter().map(|r| r * 100.0).collect();
            let [low, middle, high] = [0.25, 0.5, 0.75].map(|q| quantile(&mut ratios, q));
            format!("{middle:.1} % ({low:.1}, {high:.1})")
        };
        format!(
            "| {} | {} | {} | 0 | {} | 0 | {} | {} | {} | {} | {} KiB, {} mappings | {} |",
            self.name,
            self.rounds,
            self.requests,
            self.asked,
            time(&self.transitions),
            time(&self.pauses),
            percent(&self.ratios),
            percent(&self.work_ratios),
            self.grown,
            self.mapped,
            self.restored,
        )
    }
}

/// The value below which this part of them lies; 0 of none.
fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len().saturating_sub(1) as f64 * part).round() as usize;
    values.get(at).copied().unwrap_or(0.0)
}
