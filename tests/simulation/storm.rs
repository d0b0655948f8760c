//! One run: a ring forms, faults are injected while services commit, everything is mended, and all
//! that was acknowledged must come back.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use ringkeep::{
    membership::{Change, Durable, Member, NodeId, View, quorum::majority},
    mirror::Protection,
    name::Name,
};

use crate::{
    homes::home_of,
    oracle::Oracle,
    tally::{Fault, Tally},
    world::{CLUSTER, Params, Simulation, Weather, World},
};

/// How long a ring may take to form, and to be as before after everything was mended.
const PATIENCE: Duration = Duration::from_secs(120);
/// More nodes than this are there from the begin.
const FORMING_MAX: usize = 40;

/// Runs once. What went wrong, if anything.
pub(crate) fn run(params: Params) -> Result<Tally, String> {
    let mut simulation = Simulation::new(params);
    let outcome = catch_unwind(AssertUnwindSafe(|| whole_run(&mut simulation)));
    let world = &simulation.world;
    let mut stuck = None;
    let failure = match outcome {
        Ok(ended) => {
            stuck = ended.err();
            world.oracle.borrow().broken().map(str::to_owned)
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(text.unwrap_or_else(|| "a panic".to_owned()))
        }
    };
    if let Some(failure) = failure {
        return Err(format!("{failure}{}", events(world)));
    }
    let mut tally = world.tally.borrow().clone();
    if let Some(why) = stuck {
        world.log(|| why);
        tally.stuck.push(params.seed);
        last_events(world);
    }
    let counts = world.data.counts();
    tally.add_many(Fault::LateWrite, counts.late);
    tally.add_many(Fault::TornWrite, counts.torn_for_good + counts.lost);
    tally.add_many(Fault::LostAcknowledgement, counts.unacknowledged);
    tally.simulated_ms = world.now.get().0 / 1_000_000;
    tally.runs = 1;
    let oracle = world.oracle.borrow();
    let kept = oracle.names().iter().filter(|name| oracle.counts(name)).count();
    tally.lost_rightly = oracle.lost;
    tally.kept_back = (kept - counting(&oracle, world).len()) as u64;
    drop(oracle);
    Ok(tally)
}

fn last_events(world: &World) {
    if world.params.verbose {
        println!("{}", events(world));
    }
}

fn events(world: &World) -> String {
    world.last_events().iter().map(|event| format!("\n{event}")).collect()
}

fn whole_run(simulation: &mut Simulation) -> Result<(), String> {
    form(simulation)?;
    simulation.world.oracle.borrow_mut().commits_go_on = true;
    simulation.run_for(Duration::from_millis(500));
    let end = simulation.world.now.get() + simulation.world.params.storm;
    while simulation.world.now.get() < end && simulation.world.oracle.borrow().broken().is_none() {
        let pause = 5 + simulation.world.roll(250);
        simulation.run_for(Duration::from_millis(pause));
        inject(&simulation.world);
    }
    mend(simulation)
}

fn form(simulation: &mut Simulation) -> Result<(), String> {
    let world = simulation.world.clone();
    let nodes = world.params.nodes;
    if nodes > FORMING_MAX {
        let members: Vec<Member> = (0..nodes).map(|at| new_member(&world, at)).collect();
        let first = View::first(CLUSTER, members[0].clone());
        let joined = members[1..].to_vec();
        let view = first.next(&Change { joined, ..Change::default() }).expect("they can join");
        let view = Arc::new(view);
        for (machine, me) in world.machines.iter().zip(&members) {
            let durable = Durable { me: me.clone(), view: view.clone(), votes: Default::default() };
            machine.memory.borrow_mut().durable = Some(durable);
        }
        world.founded.set(true);
    }
    world.start(0);
    simulation.run_for(Duration::from_millis(50));
    if nodes > 2 {
        world.tally.borrow_mut().add(Fault::CollidingStarts);
    }
    (1..nodes).for_each(|at| world.start(at));
    if simulation.run_until(PATIENCE, is_whole) { Ok(()) } else { Err("no ring".to_owned()) }
}

fn new_member(world: &World, at: usize) -> Member {
    let machine = &world.machines[at];
    let id = NodeId { name: machine.name.clone(), incarnation: world.new_incarnation(at) };
    let mirrors = world.params.copies;
    Member { id, address: machine.address, witness: false, zone: None, mirrors }
}

/// Whether all machines are in one view.
fn is_whole(world: &World) -> bool {
    let Some(first) = world.server(0).and_then(|server| server.view()) else { return false };
    // That a number has one view only is checked where it is installed.
    let in_it = |at: usize| {
        let server = world.machines[at].server.borrow();
        let is = server.as_ref().is_some_and(|s| s.view_number() == Some(first.number));
        if !is {
            world.missing.set(at);
        }
        is
    };
    // This is asked after each step: whoever was missing most often still is.
    in_it(world.missing.get())
        && first.ring.len() == world.params.nodes
        && first.leaving.is_empty()
        && (0..world.params.nodes).all(in_it)
}

/// The checkpoints that must be there in the end.
fn counting(oracle: &Oracle, world: &World) -> Vec<Name> {
    let mut names = oracle.names();
    let served = |name: &Name| world.owners_of(name).next().is_some();
    names.retain(|name| oracle.counts(name) && (served(name) || !oracle.is_in_doubt(world, name)));
    names
}

/// Whether every checkpoint that is not lost has one owner and all its copies.
fn is_protected(world: &World) -> bool {
    let oracle = world.oracle.borrow();
    counting(&oracle, world).iter().all(|name| {
        let owners: Vec<_> = world.owners_of(name).collect();
        let good = |p| matches!(p, Some(Protection::InSync | Protection::Lagging));
        owners.len() == 1 && good(owners[0].protection(name))
    })
}

// Faults.

fn inject(world: &Rc<World>) {
    let nodes = world.params.nodes as u64;
    let any = || world.roll(nodes) as usize;
    let ms = |from: u64, to: u64| Duration::from_millis(from + world.roll(to - from));
    let fault = match world.roll(100) {
        0..14 => Fault::Crash,
        14..22 => Fault::PowerLoss,
        22..32 => Fault::Cut,
        32..40 => Fault::OneWayCut,
        40..46 => Fault::Flap,
        46..56 => Fault::Pause,
        56..62 => Fault::SlowNode,
        62..66 => Fault::ClockJump,
        66..72 => Fault::Leave,
        72..76 => Fault::CollidingStarts,
        76..84 => Fault::HalfLandedMark,
        84..92 => Fault::Takeover,
        92..96 => return weather(world),
        _ => return world.heal(),
    };
    let at = any();
    // Once memory is lost, further failures are chosen so that the ring can still heal itself.
    let whole = all_remember(world);
    let group = matches!(fault, Fault::Cut | Fault::OneWayCut | Fault::Flap);
    let goes = group || fault == Fault::Leave;
    if !whole && (goes || !can_spare(world, at)) {
        return;
    }
    match fault {
        Fault::Crash if world.server(at).is_some() => {
            world.kill(at);
            world.start_later(at, ms(20, 4_000));
        }
        Fault::PowerLoss if can_spare(world, at) => {
            world.lose_power(at);
            world.start_later(at, ms(100, 6_000));
        }
        Fault::Cut | Fault::OneWayCut | Fault::Flap => {
            let group: Vec<usize> = match world.roll(3) {
                0 => vec![at],
                1 => vec![at, any(), any()],
                _ => (0..world.params.nodes).filter(|_| world.roll(2) == 0).collect(),
            };
            let (times, length) = if fault == Fault::Flap { (4, 300) } else { (1, 5_000) };
            let both = fault != Fault::OneWayCut;
            let other = (world.roll(2) == 0 && group.len() == 1).then(any);
            let (again, spawned) = (world.clone(), world.clone());
            spawned.spawn(async move {
                for _ in 0..times {
                    cut(&again, &group, other, both);
                    again.pause(Duration::from_millis(20 + again.roll(length))).await;
                    again.heal();
                    again.pause(Duration::from_millis(20 + again.roll(length))).await;
                }
            });
        }
        Fault::Pause if world.server(at).is_some() => world.put_to_sleep(at, ms(50, 4_000)),
        Fault::SlowNode => world.slow_down(at, ms(500, 5_000), 1_000 * (1 + world.roll(300))),
        Fault::ClockJump => {
            world.clock_jumps(at, Duration::from_millis(world.roll(20_000)));
        }
        Fault::Leave => {
            let Some(server) = world.server(at).filter(|server| server.is_member()) else { return };
            server.spawn(server.clone().leave());
            world.start_later(at, ms(1_000, 10_000));
            // As with a second signal, should it take long.
            let (again, process) = (world.clone(), server.process);
            world.spawn(async move {
                again.pause(Duration::from_secs(8)).await;
                if again.server(at).is_some_and(|server| server.process == process) {
                    again.kill(at);
                    again.start(at);
                }
            });
        }
        Fault::CollidingStarts => {
            let down: Vec<usize> =
                (0..world.params.nodes).filter(|&at| world.server(at).is_none()).collect();
            if down.len() < 2 {
                return;
            }
            down.into_iter().for_each(|at| world.start(at));
        }
        Fault::HalfLandedMark => {
            world.mark_trap.set(Some((at, world.roll(2) == 0)));
            // Counted when it happens. Something must move for a mark to be posted.
            world.start_later(at, ms(200, 3_000));
            let neighbour = any();
            if neighbour != at && world.server(neighbour).is_some() {
                world.put_to_sleep(neighbour, ms(500, 2_500));
            }
            return;
        }
        Fault::Takeover => {
            let name = home_of(world.roll(world.params.services as u64) as usize);
            let Some(server) = world.server(at).filter(|server| server.is_member()) else { return };
            server.spawn(server.clone().take_over(name));
        }
        _ => return,
    }
    world.log(|| format!("fault {fault:?} at {at}"));
    world.tally.borrow_mut().add(fault);
}

fn cut(world: &World, group: &[usize], other: Option<usize>, both: bool) {
    let others: Vec<usize> = match other {
        Some(other) => vec![other],
        None => (0..world.params.nodes).collect(),
    };
    for &one in group {
        for &other in others.iter().filter(|other| !group.contains(other)) {
            world.cut(one, other);
            if both {
                world.cut(other, one);
            }
        }
    }
}

fn weather(world: &World) {
    let severe = world.roll(3);
    world.weather.set(Weather {
        loss: severe * world.roll(8),
        double: world.roll(6),
        delay_min: 50,
        delay_max: 200 + severe * world.roll(10_000),
        overtaken: world.roll(10),
        crash_at_persist: world.roll(2) * world.roll(100),
        crash_at_output: world.roll(2) * world.roll(10),
        crash_in_update: world.roll(2) * world.roll(20),
    });
}

/// Whether a majority of the voters, of the newest views and of what may be the next one, remembers
/// its votes and is there, without this machine. A ring of which a majority lost its memory has to
/// be started anew by a person; and who is away may be evicted, so that less of a majority remains.
fn can_spare(world: &World, at: usize) -> bool {
    let reachable = world.reachable();
    world.oracle.borrow().last_views().iter().all(|view| {
        let there = |member: &&Member| {
            let machine = world.machine_named(&member.id.name);
            machine != at && reachable[machine] && remembers(world, machine, &member.id)
        };
        view.voters.iter().filter(there).count() >= majority(view.voters.len())
    })
}

fn remembers(world: &World, at: usize, life: &NodeId) -> bool {
    let memory = world.machines[at].memory.borrow();
    let is = |other: Option<&Member>| other.is_some_and(|other| other.id == *life);
    let voting = |durable: &Option<Durable>| is(durable.as_ref().map(|durable| &durable.me));
    voting(&memory.durable) || voting(&memory.former) || is(memory.joining.as_ref())
}

/// Whether no voter lost its memory since it became one.
fn all_remember(world: &World) -> bool {
    world.oracle.borrow().last_views().iter().flat_map(|view| &view.voters).all(|member| {
        let machine = world.machine_named(&member.id.name);
        world.machines[machine].memory_since.get() <= member.id.incarnation
    })
}

/// Whether most voters of the newest view still have their memory: without them nobody may go on. A
/// joiner may lose it after others proposed it and before it voted: then [`can_spare`] was asked too
/// early.
fn most_remember(world: &World) -> bool {
    world.oracle.borrow().last_views().first().is_none_or(|view| {
        let there = |m: &&Member| remembers(world, world.machine_named(&m.id.name), &m.id);
        view.voters.iter().filter(there).count() >= majority(view.voters.len())
    })
}

// The end.

fn mend(simulation: &mut Simulation) -> Result<(), String> {
    let world = simulation.world.clone();
    world.log(|| "all is mended".to_owned());
    world.mark_trap.set(None);
    world.weather.set(Weather { delay_min: 50, delay_max: 200, ..Weather::default() });
    for at in 0..world.params.nodes {
        world.put_to_sleep(at, Duration::ZERO);
        world.slow_down(at, Duration::ZERO, 1);
    }
    // What the storm still has under way ends by itself; it cuts no more when it has healed.
    let end = world.now.get() + PATIENCE;
    let mut whole = false;
    while !whole && world.now.get() < end && world.oracle.borrow().broken().is_none() {
        world.heal();
        (0..world.params.nodes).for_each(|at| world.start(at));
        let done = |world: &World| is_whole(world) && is_protected(world);
        whole = simulation.run_until(Duration::from_millis(100), done);
    }
    if !whole && !most_remember(&world) {
        world.tally.borrow_mut().without_majority += 1;
        return Ok(());
    }
    if !whole {
        return Err(format!("not whole again:{}", describe(&world)));
    }
    let names: Vec<_> = {
        let oracle = world.oracle.borrow();
        let counting = counting(&oracle, &world).into_iter();
        counting.map(|name| (oracle.acknowledged_version(&name), name)).collect()
    };
    let newer = |world: &World| {
        let oracle = world.oracle.borrow();
        names.iter().all(|(before, name)| oracle.acknowledged_version(name) > *before)
    };
    if simulation.run_until(PATIENCE, newer) {
        Ok(())
    } else {
        Err(format!("commits do not go on:{}", describe(&world)))
    }
}

fn describe(world: &World) -> String {
    let mut text = String::new();
    for server in world.servers() {
        let view = server.view();
        let number = view.as_ref().map(|v| v.number);
        let ring: Vec<String> =
            view.iter().flat_map(|v| &v.ring).map(|m| m.id.to_string()).collect();
        text += &format!("\n{}: view {number:?} {ring:?}", server.id());
    }
    if let Some(view) = world.oracle.borrow().last_views().first() {
        for gone in view.holders.iter().filter(|h| h.is_gone()) {
            text += &format!("\ngone: {} {:?}", gone.owner, gone.runs);
        }
    }
    for name in world.oracle.borrow().names() {
        let counts = world.oracle.borrow().counts(&name);
        text += &format!("\n{name}, to be kept: {counts}");
        for server in world.servers() {
            let copies = server.located(&name);
            let successor = server.meta_of(&name).and_then(|meta| meta.successor);
            if !copies.is_empty() {
                let protection = server.protection(&name);
                text += &format!("\n  at {}: {copies:?} {protection:?} {successor:?}", server.id());
            }
        }
    }
    text
}
