//! Asks a server all the time, and fails at the first answer that is not one of those that are right at that moment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::{Ask, Version};

/// Pause between two questions: they are to look at the server, not to load it.
const PAUSE: Duration = Duration::from_millis(3);
/// Every so manieth question is asked over a connection of its own.
const FRESH: u64 = 8;

/// The versions that may answer, at each time since the beginning: what is asked while one entry is the last and answered while
/// a later one is may be any of those between.
type History = Mutex<Vec<Vec<Version>>>;

/// The client's thread, and what it knows.
pub struct Judge {
    history: Arc<History>,
    asked: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Judge {
    /// Begins to ask; the answer is the original one.
    pub fn start(client: Box<dyn Ask>) -> Self {
        let history = Arc::new(Mutex::new(vec![vec![0]]));
        let (asked, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let shared = (history.clone(), asked.clone(), ends.clone());
        let thread = std::thread::spawn(move || ask(client, &shared.0, &shared.1, &shared.2));
        Self { history, asked, ends, thread: Some(thread) }
    }

    /// From now on these versions may answer.
    pub fn allow(&self, versions: &[Version]) {
        lock(&self.history).push(versions.to_vec());
    }

    /// How many answers there were.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Fails if an answer was wrong.
    pub fn check(&mut self) -> Result<()> {
        match &self.thread {
            Some(thread) if !thread.is_finished() => Ok(()),
            _ => self.end(),
        }
    }

    /// Ends, and fails if an answer was wrong.
    pub fn end(&mut self) -> Result<()> {
        self.ends.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow!("the asking thread panicked"))?
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn ask(mut client: Box<dyn Ask>, history: &History, asked: &AtomicU64, ends: &AtomicBool) -> Result<()> {
    for n in 0.. {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        let first = lock(history).len() - 1;
        let fresh = n % FRESH == 0;
        let version = client.ask(fresh).with_context(|| format!("question {n} was not answered"))?;
        let since = lock(history)[first..].to_vec();
        if !since.iter().flatten().any(|right| *right == version) {
            bail!(
                "question {n} (fresh connection: {fresh}) was answered by version {version} where {since:?} are right"
            );
        }
        asked.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn lock(history: &History) -> std::sync::MutexGuard<'_, Vec<Vec<Version>>> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}
