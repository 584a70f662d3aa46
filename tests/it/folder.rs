//! A folder of files by way of three servers, while servers are killed, connections are cut, and the client is stopped or
//! killed and started again, until it ends with 0. `scripts/chaos.sh` has more files.

use crate::harness::*;
use crate::proxy::{Action, Proxy};
use fastrand::Rng;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uuid::Uuid;

const SERVERS: usize = 3;
const WORKERS: usize = 2;
const IN_FLIGHT: usize = 16;

/// Into how many folders the files are spread.
const FOLDERS: usize = 10;

/// The length of the largest file. One of them has it, and one has nothing in it.
const LARGEST: usize = 5_000_000;

/// What the procedure writes of each of its runs: the number that its file begins with, or this.
const EMPTY: &str = "--------";

/// What is done to the system, again and again, each time in another order.
const EVENTS: [Event; 4] =
    [Event::KillServer, Event::CutConnections, Event::InterruptClient, Event::KillClient];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// SIGKILL for one of them, and another one in its place.
    KillServer,
    /// All of them, in the middle of whatever goes through.
    CutConnections,
    /// SIGINT for the client, and the same command again.
    InterruptClient,
    /// SIGKILL for the client, and the same command again.
    KillClient,
}

impl Event {
    /// How many calls may be under way when it strikes, and so run once more than they would.
    fn most_in_flight(self) -> usize {
        match self {
            Event::KillServer => WORKERS,
            // What a server had comes again, and its client makes a new call of it.
            Event::CutConnections => IN_FLIGHT + SERVERS * WORKERS,
            Event::InterruptClient | Event::KillClient => IN_FLIGHT,
        }
    }
}

/// What became of the folder.
pub struct Outcome {
    seed: u64,
    files: usize,
    bytes: u64,
    took: Duration,
    events: BTreeMap<Event, usize>,
    /// How often the client ended with each exit code.
    exits: BTreeMap<i32, usize>,
    /// What is wrong with the outputs, at the end or when the client was started again.
    faults: Vec<String>,
    /// How often the procedure ran.
    runs: usize,
    /// Temporary files that killed clients left.
    parts: usize,
}

impl Outcome {
    /// How many runs there may be beside one for each file.
    fn most_again(&self) -> usize {
        self.events.iter().map(|(event, times)| event.most_in_flight() * times).sum()
    }

    /// Whether each output is there and right, was made once, and nothing else was left.
    pub fn is_good(&self) -> bool {
        self.faults.is_empty()
            && self.exits.get(&0) == Some(&1)
            && EVENTS.iter().all(|event| self.events.contains_key(event))
            && self.runs >= self.files
            && self.runs - self.files <= self.most_again()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (megabytes, seconds) = (self.bytes / 1_000_000, self.took.as_secs());
        writeln!(f, "a folder, seed {}, in {seconds} s, {:?}:", self.seed, self.events)?;
        writeln!(f, "{:8} files, {megabytes} MB", self.files)?;
        for (code, times) in &self.exits {
            writeln!(f, "{times:8} times the client ended with {code}")?;
        }
        writeln!(f, "{:8} temporary files left meanwhile", self.parts)?;
        let again = self.runs.saturating_sub(self.files);
        writeln!(f, "{again:8} runs again, of {} that may be", self.most_again())?;
        writeln!(f, "{:8} faults", self.faults.len())?;
        self.faults.iter().take(20).try_for_each(|fault| writeln!(f, "{fault}"))
    }
}

/// Sends so many files through the procedure, and does things to the system until all outputs are there.
pub fn drill(files: usize, seed: u64) -> Outcome {
    let began = Instant::now();
    let place = Place::new();
    let bytes = (0..files).map(|number| place.write_input(number, seed)).sum();
    let node = Node::start();
    let mut drill = Drill {
        servers: Vec::new(),
        queue: Queue::at(&node.url),
        proxies: [(); 2].map(|()| Proxy::start(&node.url, |_| Action::Pass)),
        _node: node,
        random: Rng::with_seed(seed),
        // So that everything is done at least once.
        interval: (files / 7).min(60),
        place,
        outputs: BTreeMap::new(),
        outcome: Outcome {
            seed,
            files,
            bytes,
            took: Duration::ZERO,
            events: BTreeMap::new(),
            exits: BTreeMap::new(),
            faults: Vec::new(),
            runs: 0,
            parts: 0,
        },
    };
    drill.servers = (0..SERVERS).map(|_| drill.start_server()).collect();
    drill.disturb();
    drill.servers.drain(..).for_each(|server| drop(server.stop()));
    drill.compare();
    let took = began.elapsed();
    Outcome { took, ..drill.outcome }
}

struct Drill {
    servers: Vec<Process>,
    queue: Queue,
    /// The servers' and the client's ways to the broker.
    proxies: [Proxy; 2],
    _node: Node,
    random: Rng,
    /// How many runs there are between two events, more or less.
    interval: usize,
    place: Place,
    /// The outputs that were there when the client was started last: their numbers in the file system, by their names.
    outputs: BTreeMap<PathBuf, u64>,
    outcome: Outcome,
}

impl Drill {
    fn start_server(&self) -> Process {
        let procedure = format!("p={}", self.place.path("procedure").display());
        let workers = WORKERS.to_string();
        let words = ["-q", "--queue", self.queue.name(), "--workers", &workers, "--procedure"];
        let words = [&words[..], &[&procedure]].concat();
        Process::spawn(&mut server_command(&self.proxies[0].url, &words))
    }

    /// Starts the client, always with the same command.
    fn start_client(&mut self) -> Process {
        self.look();
        let in_flight = IN_FLIGHT.to_string();
        let words = ["-q", "--queue", self.queue.name(), "--wait", "--unordered", "--retries", "9"];
        let files = ["--files", "--output", "out/{.}.res", "--skip-existing", "--in-flight"];
        let words = [&words[..], &files, &[&in_flight, "p", "-"]].concat();
        let names: Vec<String> =
            (0..self.outcome.files).map(|number| Place::name(number) + ".dat\n").collect();
        let mut command = client_command(&self.proxies[1].url, &words);
        feed(command.current_dir(&self.place.0), names.concat().into_bytes())
    }

    /// Looks at the outputs while no client runs: those that were there before were not made again.
    fn look(&mut self) {
        let mut outputs = BTreeMap::new();
        for path in self.place.outputs() {
            let is_part = path.to_string_lossy().ends_with(".part");
            match fs::metadata(&path) {
                Ok(_) if is_part => self.outcome.parts += 1,
                Ok(file) => drop(outputs.insert(path, file.ino())),
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        for (path, number) in &self.outputs {
            if outputs.get(path) != Some(number) {
                self.outcome.faults.push(format!("{} was made again", path.display()));
            }
        }
        self.outputs = outputs;
    }

    /// Does one thing after another to the system, until the client ends with 0.
    fn disturb(&mut self) {
        let mut events = Vec::new();
        let mut client = self.start_client();
        loop {
            // Where each client begins anew, none comes to an end.
            assert!(self.place.runs() < 5 * self.outcome.files, "files are made again and again");
            if self.has_ended(&mut client) {
                if self.end(client) == 0 {
                    return;
                }
                client = self.start_client();
                continue;
            }
            if events.is_empty() {
                events.extend(EVENTS);
                self.random.shuffle(&mut events);
            }
            let event = events.pop().unwrap();
            *self.outcome.events.entry(event).or_default() += 1;
            match event {
                Event::KillServer => {
                    let index = self.random.usize(0..SERVERS);
                    self.servers[index].signal("KILL");
                    self.servers[index] = self.start_server();
                }
                Event::CutConnections => self.proxies.iter().for_each(Proxy::end_connections),
                Event::InterruptClient => client = self.restart(client, "INT"),
                Event::KillClient => client = self.restart(client, "KILL"),
            }
        }
    }

    fn restart(&mut self, client: Process, signal: &str) -> Process {
        client.signal(signal);
        self.end(client);
        self.start_client()
    }

    /// Waits for some runs of the procedure. Returns whether the client has ended before that.
    fn has_ended(&mut self, client: &mut Process) -> bool {
        let runs = self.random.usize(self.interval / 2..=self.interval * 3 / 2);
        let (enough, began) = (self.place.runs() + runs, Instant::now());
        while self.place.runs() < enough {
            if client.has_ended() {
                return true;
            }
            assert!(began.elapsed() < PATIENCE, "the folder gets no further");
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// Notes how the client ended. With 75 some calls failed, which the next one makes.
    fn end(&mut self, client: Process) -> i32 {
        let ended = client.wait();
        assert!([0, 75, 130, 137].contains(&ended.code()), "{ended:?}");
        *self.outcome.exits.entry(ended.code()).or_default() += 1;
        ended.code()
    }

    /// Compares all outputs with what they have to be, byte by byte.
    fn compare(&mut self) {
        self.look();
        self.outcome.runs = self.place.runs();
        let (files, seed) = (self.outcome.files, self.outcome.seed);
        let mut expected = HashSet::new();
        for number in 0..files {
            let path = self.place.output(&Place::name(number));
            match fs::read(&path) {
                Ok(result) if result == result_of(content(number, seed)) => {}
                Ok(result) => {
                    let length = result.len();
                    self.outcome.faults.push(format!("{}: wrong, {length} bytes", path.display()));
                }
                Err(error) => self.outcome.faults.push(format!("{}: {error}", path.display())),
            }
            expected.insert(path);
        }
        for path in self.place.outputs() {
            if !expected.contains(&path) {
                self.outcome.faults.push(format!("{} was left", path.display()));
            }
        }
    }
}

/// A folder for inputs, outputs and the procedure.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        let place = Place(std::env::temp_dir().join(format!("fib-rpc-folder-{}", Uuid::new_v4())));
        for folder in 0..FOLDERS {
            fs::create_dir_all(place.path(&format!("in/{folder}"))).unwrap();
        }
        fs::write(place.path("runs"), "").unwrap();
        // The first line names the file. Of the rest each byte becomes another one.
        let script = format!(
            "#!/bin/sh\nread -r n || n={EMPTY}\necho \"$n\" >>{}\n\
             case $n in {EMPTY}) ;; *) echo \"$n\" ;; esac\n\
             LC_ALL=C exec tr '\\000-\\377' '\\200-\\377\\000-\\177'\n",
            place.path("runs").display()
        );
        fs::write(place.path("procedure"), script).unwrap();
        fs::set_permissions(place.path("procedure"), Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The name of a file, without extension.
    fn name(number: usize) -> String {
        format!("in/{}/{number}", number % FOLDERS)
    }

    fn output(&self, name: &str) -> PathBuf {
        self.path(&format!("out/{name}.res"))
    }

    /// Writes a file. Returns its length.
    fn write_input(&self, number: usize, seed: u64) -> u64 {
        let content = content(number, seed);
        fs::write(self.path(&(Place::name(number) + ".dat")), &content).unwrap();
        content.len() as u64
    }

    /// All that is where the outputs go.
    fn outputs(&self) -> Vec<PathBuf> {
        let folders = (0..FOLDERS).map(|folder| self.path(&format!("out/in/{folder}")));
        let entries = folders.filter_map(|folder: PathBuf| fs::read_dir(Path::new(&folder)).ok());
        entries.flatten().map(|entry| entry.unwrap().path()).collect()
    }

    /// How often the procedure was begun.
    fn runs(&self) -> usize {
        fs::metadata(self.path("runs")).unwrap().len() as usize / (EMPTY.len() + 1)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What is in a file: the same for the same number and seed. Most are small, one in twenty has any order of magnitude.
fn content(number: usize, seed: u64) -> Vec<u8> {
    let mut random = Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
    let length = match number {
        0 => 0,
        1 => LARGEST,
        _ if random.u32(0..20) > 0 => random.usize(9..20_000),
        _ => (20_000.0 * (LARGEST as f64 / 20_000.0).powf(random.f64())) as usize,
    };
    let mut content = vec![0; length];
    random.fill(&mut content);
    if length > 0 {
        content[..9].copy_from_slice(format!("{number:08}\n").as_bytes());
    }
    content
}

/// What the procedure makes of it.
fn result_of(mut content: Vec<u8>) -> Vec<u8> {
    content.iter_mut().skip(9).for_each(|byte| *byte ^= 0x80);
    content
}
