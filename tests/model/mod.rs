//! What the model checks share: objects of the real code by number, so that a state of the whole
//! model is a few dozen bytes, and each step of the real code is run once and then looked up.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use stateright::{Checker, Expectation, Model};

mod node;
mod progress;
pub(crate) mod ring;

/// Objects by number. Equal objects have the same number.
pub(crate) struct Numbered<T> {
    numbers: Mutex<HashMap<Arc<T>, u32>>,
    objects: RwLock<Vec<Arc<T>>>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self { numbers: Mutex::default(), objects: RwLock::default() }
    }
}

impl<T: Eq + Hash> Numbered<T> {
    pub(crate) fn number(&self, object: T) -> u32 {
        let mut numbers = self.numbers.lock().unwrap();
        if let Some(&number) = numbers.get(&object) {
            return number;
        }
        let mut objects = self.objects.write().unwrap();
        let (number, object) = (u32::try_from(objects.len()).unwrap(), Arc::new(object));
        objects.push(object.clone());
        numbers.insert(object, number);
        number
    }

    pub(crate) fn get(&self, number: u32) -> Arc<T> {
        self.objects.read().unwrap()[number as usize].clone()
    }
}

/// Results that were worked out before.
pub(crate) struct Memo<K, V>([RwLock<HashMap<K, V>>; SHARDS]);

const SHARDS: usize = 64;

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| RwLock::default()))
    }
}

impl<K: Eq + Hash, V: Clone> Memo<K, V> {
    pub(crate) fn get(&self, key: K, work_out: impl FnOnce(&K) -> V) -> V {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&key);
        let shard = &self.0[hash as usize % SHARDS];
        if let Some(known) = shard.read().unwrap().get(&key) {
            return known.clone();
        }
        let value = work_out(&key);
        shard.write().unwrap().entry(key).or_insert(value).clone()
    }
}

/// What an exhaustive check came to.
pub(crate) struct Checked {
    /// Different states.
    pub(crate) states: usize,
    /// The longest history, in steps.
    pub(crate) depth: usize,
    /// Whether there was nothing left to look at.
    pub(crate) complete: bool,
    /// The property that was violated, and the steps that lead there.
    pub(crate) violated: Option<(&'static str, Vec<String>)>,
}

/// Looks at every state that can be reached, in breadth, so that a violation is told by a short
/// history. Ends soon after the first one, and at the limits.
pub(crate) fn check<M>(
    title: &str,
    model: M,
    states_max: usize,
    time_max: Duration,
    describe: impl Fn(&M, &M::Action) -> String,
) -> Checked
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static,
    M::Action: Clone + PartialEq + std::fmt::Debug,
{
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let checker = model
        .checker()
        .threads(threads)
        .target_state_count(states_max)
        .timeout(time_max)
        .finish_when(stateright::HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let always = checker.model().properties();
    let always = always.iter().filter(|p| p.expectation == Expectation::Always);
    let violated = always.filter_map(|p| Some((p.name, checker.discovery(p.name)?))).next();
    let checked = Checked {
        states: checker.unique_state_count(),
        depth: checker.max_depth() - 1,
        complete: checker.is_done() && violated.is_none() && checker.state_count() < states_max,
        violated: violated.map(|(name, path)| {
            let steps = path.into_actions();
            (name, steps.iter().map(|step| describe(checker.model(), step)).collect())
        }),
    };
    println!(
        "{title}: {} states, {} generated, {} steps deep, {:.1} s, {}",
        checked.states,
        checker.state_count(),
        checked.depth,
        began.elapsed().as_secs_f64(),
        match &checked.violated {
            Some((name, steps)) => format!("VIOLATED in {} steps: {name}", steps.len()),
            None if checked.complete => "complete".to_owned(),
            None => "cut off".to_owned(),
        }
    );
    checked
}

/// Random walks, each until nothing can happen any more: how deep behaviours are reached that are
/// too many to look at all. Ends at the first violation, with the property and the walk.
pub(crate) fn walk<M>(
    title: &str,
    model: &M,
    seed: u64,
    walks_max: usize,
    steps_max: usize,
) -> Option<(&'static str, Vec<M::Action>)>
where
    M: Model,
    M::State: Clone,
    M::Action: Clone,
{
    let (began, mut steps, mut longest) = (Instant::now(), 0usize, 0);
    let properties = model.properties();
    let mut random = seed;
    let mut below = move |end: usize| {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    };
    for walked in 0..walks_max {
        let mut state = model.init_states().remove(0);
        let mut path = Vec::new();
        while path.len() < steps_max {
            let mut actions = Vec::new();
            model.actions(&state, &mut actions);
            if actions.is_empty() {
                break;
            }
            let action = actions.swap_remove(below(actions.len()));
            let Some(next) = model.next_state(&state, action.clone()) else { continue };
            state = next;
            path.push(action);
            steps += 1;
            let always = properties.iter().filter(|p| p.expectation == Expectation::Always);
            for property in always {
                if !(property.condition)(model, &state) {
                    println!("{title}: walk {walked}: VIOLATED {}", property.name);
                    return Some((property.name, path));
                }
            }
        }
        longest = longest.max(path.len());
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{title}: {walks_max} walks, {steps} steps, longest {longest}, {seconds:.1} s, seed {seed}"
    );
    None
}

/// How much is looked at: a number of states or walks that fits into a test run, or as many times
/// more as `RINGKEEP_MODEL` says.
pub(crate) fn budget(default: usize) -> usize {
    let times = std::env::var("RINGKEEP_MODEL").ok();
    default * times.map_or(1, |times| times.parse().expect("RINGKEEP_MODEL is a whole number"))
}
