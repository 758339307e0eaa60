//! A session: one run of the tool at work on one target.
//!
//! It holds the right to change the target, its document, and what the work has cost so far. Every change of the state goes through
//! `Session::step`, which is the semantics' own step, and becomes the truth by `Session::commit`.

pub(crate) mod again;
pub mod arena;
pub mod batch;
pub mod callbacks;
pub(crate) mod census;
mod converge;
pub(crate) mod describe;
pub(crate) mod gate;
mod lead;
pub mod libraries;
pub(crate) mod look;
pub mod plan;
pub mod requests;
pub mod resolve;
pub mod site;
pub mod stop;
pub mod sweep;
pub mod switch;
mod turn;
pub mod unwinder;
mod word;

use crate::answers::Cost;
use crate::code::entry;
use crate::heap;
use crate::objects::Objects;
use crate::remote;
use crate::remote::mapping::{self, MapRequest, Part, Prot};
use crate::remote::place::GUARD;
use crate::session::again::Looked;
use crate::session::batch::{Batch, Ground};
use crate::session::census::Census;
use crate::stacks::Prover;
use crate::state::document::{self, Document};
use crate::state::log_ring::{self, LogRing};
use crate::state::state_area::{AREA_LEN, AREA_NAME, StateArea};
use crate::target::lock::Lock;
use crate::target::maps::Maps;
use crate::target::{Target, Unfit};
use crate::threads::crowd;
use crate::threads::priority::Prompt;
use crate::threads::{self, StoppedThread};
use crate::{Error, Pid, RemoteAddr, Result};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Once;
use std::time::{Duration, Instant};
use ugraft_core::{Effect, Event, Level, Refusal};
use ugraft_image::ParamValue;

/// The longest that the search for a thread which can make mappings may take.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// Pause between searches.
const PAUSE: Duration = Duration::from_millis(2);
/// What the decoder's tables take of the heap.
const TABLES_ROOM: usize = 512 << 10;
/// What a request of a usual size takes of the heap.
const REQUEST_ROOM: usize = 384 << 10;
/// For how long mappings that were read count as [recent](Session::recent_maps).
const RECENT: Duration = Duration::from_millis(50);

/// One run of the tool at work on one target.
#[derive(Debug)]
pub struct Session {
    pub(crate) target: Rc<Target>,
    pub(crate) document: Document,
    pub(crate) area: Option<StateArea>,
    pub(crate) prover: Prover,
    pub(crate) cost: Cost,
    pub(crate) notes: Vec<String>,
    /// Mappings that this run has made for the request at hand.
    pub(crate) made_here: Vec<Range<RemoteAddr>>,
    /// Patches that had been replaced already when the request came.
    pub(crate) replaced_before: Vec<String>,
    /// Whether a thread can have been led into memory of ours that is to be given back.
    pub(crate) was_entered: bool,
    /// Whether the transition looks for suspended stacks in all writable memory.
    pub(crate) scan_memory: bool,
    /// The loader's code that binds calls, for the transition that is being planned.
    pub(crate) resolvers: Vec<Range<RemoteAddr>>,
    /// Values for the parameters of the patch that is to be loaded: places in its metadata, and values.
    pub(crate) settings: Vec<(usize, ParamValue)>,
    /// What went wrong in a callback of the request at hand.
    pub(crate) trouble: Option<Error>,
    /// Libraries of the document that are not there any more, as of the last stop.
    pub(crate) gone: BTreeSet<String>,
    /// Names by which patches call libraries that cannot go.
    pub(crate) permanent: BTreeSet<String>,
    /// The hook's count of changes when what it had done was taken over last.
    pub(crate) counted: Option<u64>,
    /// The link maps that were listed then.
    pub(crate) listed: Option<Vec<u64>>,
    /// Who had which key when the transition began.
    pub(crate) census: Option<Census>,
    messages: Vec<(log_ring::Level, String)>,
    /// Whether anything of the request at hand has been committed.
    pub(crate) committed: bool,
    /// What the request at hand was planned by.
    pub(crate) looked: Option<Looked>,
    /// Room to keep between new mappings and their neighbours.
    pub(crate) apart: u64,
    /// See [`Session::recent_maps`].
    pub(crate) maps: Option<(Instant, Maps)>,
    began: Instant,
    /// None where it only reads.
    lock: Option<Lock>,
}

impl Session {
    /// Takes the right to change `pid` and reads its document. Nothing is stopped, traced or changed.
    ///
    /// # Errors
    /// [`Error::Busy`] where another tool is at work, [`Error::LaterVersion`], and those of [`Target::open`] and [`StateArea::find`].
    pub fn open(pid: Pid) -> Result<Self> {
        let began = Instant::now();
        let (target, lock) = match Target::open(pid) {
            // By another tool, which changes it or looks at its threads, or did so a moment ago.
            Err(Error::AlreadyTraced { .. }) => {
                let lock = Lock::take(pid)?;
                (Target::open(pid)?, lock)
            }
            target => (target?, Lock::take(pid)?),
        };
        let (maps, area, written) = find_document(&target)?;
        let document = written.as_deref().map_or_else(|| Ok(Document::default()), Document::parse)?;
        document.check_version(pid)?;
        Ok(Self { began, ..Self::of(target, maps, area, document, Some(lock)) })
    }

    /// A session with what was read of the target; without the right to change it, one that only reads (see
    /// [`crate::report::view`]).
    pub(crate) fn of(
        target: Target,
        maps: Maps,
        area: Option<StateArea>,
        document: Document,
        lock: Option<Lock>,
    ) -> Self {
        let scan_memory = document.arena.as_ref().is_some_and(|arena| arena.scan_memory);
        Self {
            target: Rc::new(target),
            document,
            area,
            prover: Prover::new(),
            cost: Cost::default(),
            notes: Vec::new(),
            made_here: Vec::new(),
            replaced_before: Vec::new(),
            was_entered: false,
            scan_memory,
            resolvers: Vec::new(),
            settings: Vec::new(),
            gone: BTreeSet::new(),
            permanent: BTreeSet::new(),
            counted: None,
            listed: None,
            census: None,
            trouble: None,
            messages: Vec::new(),
            committed: false,
            looked: None,
            apart: GUARD,
            maps: Some((Instant::now(), maps)),
            began: Instant::now(),
            lock,
        }
    }

    /// What is known of the target.
    #[must_use]
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// The target.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The target's mappings as of a moment ago; those that this run has made since may be missing. Reading them takes longer
    /// than most that is done with them.
    pub(crate) fn recent_maps(&mut self) -> Result<Maps> {
        if let Some((_, maps)) = self.maps.as_ref().filter(|(read, _)| read.elapsed() < RECENT) {
            return Ok(maps.clone());
        }
        let maps = self.target.maps()?;
        self.maps = Some((Instant::now(), maps.clone()));
        Ok(maps)
    }

    /// A batch with nothing yet, of what is to be mapped where `maps` leave room.
    pub(crate) fn batch(&self, maps: Maps) -> Batch {
        Batch::new(Ground::new(&self.target, maps).apart(self.apart))
    }

    /// Tells the unwinder where the images of patches have their tables.
    pub(crate) fn know_images(&mut self) {
        let document = &self.document;
        let images = document.images.iter().filter_map(|image| image.tables.as_ref());
        let runtime = document.runtime.iter().filter_map(|runtime| runtime.tables.as_ref());
        let unwinder = document.unwinder.iter().map(|unwinder| &unwinder.tables);
        for known in images.chain(runtime).chain(unwinder) {
            self.prover.cfi.register(self.target.memory(), known.code.clone(), known.tables.clone());
        }
    }

    /// Whether the target has patches.
    ///
    /// # Errors
    /// [`Error::NotPatched`] where it has not.
    pub(crate) fn require_patched(&self) -> Result<()> {
        if self.area.is_none() || self.document.is_empty() {
            return Err(Error::NotPatched(self.target.pid()));
        }
        Ok(())
    }

    /// What the work has cost until now.
    pub(crate) fn cost_so_far(&self) -> Cost {
        Cost { elapsed: self.began.elapsed(), ..self.cost }
    }

    /// Takes the state over an event, in memory. The effects that matter here are messages: what is to be written in
    /// the target, and which callback is due, follows from the state (see [`crate::session::switch`], [`crate::session::callbacks`]).
    pub(crate) fn step(&mut self, event: Event) -> Result<()> {
        let (state, effects) = ugraft_core::step(&self.document.state, event)?;
        self.document.state = state;
        for effect in effects {
            if let Effect::Log(level, text) = effect {
                self.messages.push((level_of(level), text));
            }
        }
        Ok(())
    }

    /// Makes the document in memory the one that counts, and then appends the messages that led to it to the log.
    pub(crate) fn commit(&mut self) -> Result<()> {
        let Some(area) = &self.area else { return Ok(()) };
        assert!(self.lock.is_some(), "who only reads changes nothing");
        let memory = self.target.memory();
        self.committed = true;
        self.document.format = document::FORMAT;
        self.document.tool = document::TOOL.to_owned();
        area.commit(memory, &self.document.to_bytes())?;
        for (_, text) in &self.messages {
            tracing::debug!("{text}");
        }
        LogRing::new(area.log_ring()).append_all(memory, &self.messages)?;
        self.messages.clear();
        Ok(())
    }

    /// Adds a message of our own to those of the next commit.
    pub(crate) fn log_error(&mut self, text: String) {
        self.messages.push((log_ring::Level::Err, text));
    }

    /// Logs what the kernel says of such a refusal, if it says anything, where the target has a log.
    pub(crate) fn log_refusal(&self, refusal: &Refusal) -> Result<()> {
        let (Some(area), Some((level, text))) = (&self.area, refusal.log_line()) else { return Ok(()) };
        LogRing::new(area.log_ring()).append_all(self.target.memory(), &[(level_of(level), text)])
    }

    /// Forgets messages that were not committed, of a request that has changed nothing.
    pub(crate) fn drop_messages(&mut self) {
        self.messages.clear();
    }

    /// Makes the mappings and writes of `batch`, and commits the document that speaks of them; the state area too if
    /// there is none yet. Nothing leads to any of it yet, so a tool that dies in here leaves nothing but memory that
    /// nobody refers to.
    pub(crate) fn install(&mut self, mut batch: Batch) -> Result<()> {
        let new_area = match &self.area {
            Some(_) => None,
            None => Some(batch.ground.take(AREA_LEN, &[])?.start),
        };
        if let Some(addr) = new_area {
            let parts = vec![Part { offset: 0, len: AREA_LEN, prot: Prot::Read }];
            batch.requests.push(MapRequest { name: AREA_NAME.to_owned(), addr, len: AREA_LEN, parts });
        }
        self.made_here = batch.requests.iter().map(|r| r.addr..r.addr.offset(r.len as i64)).collect();
        if !batch.requests.is_empty() {
            self.on_some_thread(|target, maps, thread| {
                mapping::map_in(target, maps, thread, &batch.requests)
            })?;
        }
        for (addr, bytes) in &batch.writes {
            self.target.memory().write(*addr, bytes)?;
        }
        if let Some(base) = new_area {
            self.area = Some(StateArea::create(self.target.memory(), base, &self.document.to_bytes())?);
        }
        self.commit()
    }

    /// Gives mappings of ours back, in one go.
    pub(crate) fn unmap(&mut self, ranges: &[Range<RemoteAddr>]) -> Result<()> {
        self.on_some_thread(|target, maps, thread| mapping::unmap_in(target, maps, thread, ranges))?;
        self.maps = None;
        Ok(())
    }

    /// Has some thread that can run system calls for us do so, while the others run on, or wait where they would keep it from
    /// its processor. Tries again for a while where none can at the moment; one may still be busy with what a killed run of
    /// the tool had it do.
    fn on_some_thread(
        &mut self,
        work: impl Fn(&Target, &Maps, &mut StoppedThread) -> Result<()>,
    ) -> Result<()> {
        let deadline = Instant::now() + STOP_WITHIN;
        loop {
            let maps = self.recent_maps()?;
            // Where one thread does not stop, another may.
            let all = match crowd::is_crowded(&self.target)? {
                true => threads::stop_all(&self.target, STOP_WITHIN / 4).ok(),
                false => None,
            };
            let done = match all {
                Some(mut stopped) => {
                    let thread = remote::choose(&self.target, &maps, &mut stopped);
                    let done = thread.and_then(|thread| work(&self.target, &maps, thread));
                    self.let_go(stopped)?;
                    done
                }
                None => remote::stop_suitable(&self.target, &maps, STOP_WITHIN).and_then(|mut thread| {
                    let done = work(&self.target, &maps, &mut thread);
                    self.let_go_one(thread)?;
                    done
                }),
            };
            self.maps.take_if(|_| done.is_err());
            match done {
                Err(Error::CannotRun { .. } | Error::CannotStop { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                }
                done => return done,
            }
        }
    }
}

/// The target's mappings, with the state area among them and the document that counts. Where a tool was killed, a thread may just be giving
/// the area back: then it is looked for once more.
fn find_document(target: &Target) -> Result<(Maps, Option<StateArea>, Option<Vec<u8>>)> {
    const TRIES: usize = 3;
    let mut tries = 0;
    loop {
        tries += 1;
        let maps = target.maps()?;
        match StateArea::find_document(target.memory(), &maps) {
            Err(Error::Memory { .. }) if tries < TRIES => {}
            found => {
                let (area, document) = found.map_err(|e| target.cause_of(e))?.unzip();
                return Ok((maps, area, document));
            }
        }
    }
}

/// To be called as early as it is known that there will be a request that changes a target, and held: raises the priority of
/// the calling thread, makes room on its heap, and has another one build the tables of the instruction decoder, which
/// take as long as all else before the first write. Called again, it does again only what can have been undone.
/// Without it everything works as well, and takes longer.
#[must_use]
pub fn prepare() -> Prompt {
    static TABLES: Once = Once::new();
    let prompt = Prompt::begin();
    TABLES.call_once(|| {
        // With no thread to be had, whoever needs the tables first builds them.
        drop(std::thread::Builder::new().name("tables".to_owned()).spawn(|| {
            heap::make_room(TABLES_ROOM);
            entry::build_decoder_tables();
        }));
        heap::make_room(REQUEST_ROOM);
    });
    prompt
}

/// The target's mappings and objects at this moment.
pub(crate) fn objects_of(target: &Target) -> Result<(Maps, Objects<'_>)> {
    let maps = target.maps()?;
    let objects = objects_among(target, &maps)?;
    Ok((maps, objects))
}

/// The target's objects, for a patch to be linked with, with its mappings already read.
///
/// # Errors
/// [`Error::Unfit`] where they are only just being loaded, and those of [`Objects::read`].
pub(crate) fn loaded_objects<'t>(target: &'t Target, maps: &Maps) -> Result<Objects<'t>> {
    let objects = objects_among(target, maps)?;
    match objects.is_starting() {
        true => Err(Error::Unfit { pid: target.pid(), why: Unfit::Starting }),
        false => Ok(objects),
    }
}

/// The target's objects, with its mappings already read.
pub fn objects_among<'t>(target: &'t Target, maps: &Maps) -> Result<Objects<'t>> {
    let auxv: Vec<u8> = target
        .auxv()?
        .into_iter()
        .flat_map(|(key, value)| [key.to_le_bytes(), value.to_le_bytes()].concat())
        .collect();
    let proc_dir = PathBuf::from(format!("/proc/{}", target.live_thread()?));
    Objects::read(target.memory(), maps, &auxv, &proc_dir)
}

fn level_of(level: Level) -> log_ring::Level {
    match level {
        Level::Debug => log_ring::Level::Debug,
        Level::Notice => log_ring::Level::Notice,
        Level::Warning => log_ring::Level::Warn,
        Level::Error => log_ring::Level::Err,
    }
}
