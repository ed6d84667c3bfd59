//! The zone against a model of the lab: random creates, deletes, renames, snapshots, questions, lost events and the passing of
//! time. Whatever happens, no answer is older than its trust, and no address is another VM's while somebody may still
//! keep an answer that names it.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const ADDRESSES: u8 = 4;
const NAMES: [&str; 3] = ["a", "b", "c"];
const PAGE: usize = 2;

fn name(n: u8) -> VmName {
    NAMES[usize::from(n) % NAMES.len()].parse().unwrap()
}

fn address(n: u8) -> Ipv4Addr {
    [10, 77, 0, 2 + n % ADDRESSES].into()
}

/// A VM's name and address, and when it had both.
#[derive(Clone, Debug)]
struct Span {
    vm: NamedVm,
    from: Moment,
    to: Option<Moment>,
}

#[derive(Debug)]
struct Lab {
    now: Moment,
    rest: Duration,
    spans: Vec<Span>,
    freed: HashMap<Ipv4Addr, Moment>,
    ids: u128,
    /// Addresses that were told, of whom, and until when that is kept.
    told: Vec<(Ipv4Addr, VmId, Moment)>,
}

impl Lab {
    fn present(&self) -> Vec<NamedVm> {
        let mut vms: Vec<_> = self.spans.iter().filter(|span| span.to.is_none()).map(|span| span.vm.clone()).collect();
        vms.sort_by_key(|vm| vm.id);
        vms
    }

    fn begin(&mut self, vm: NamedVm) {
        self.spans.push(Span { vm, from: self.now, to: None });
    }

    fn end(&mut self, id: VmId) {
        for span in self.spans.iter_mut().filter(|span| span.vm.id == id && span.to.is_none()) {
            span.to = Some(self.now);
        }
    }

    fn create(&mut self, n: u8) -> Result<(), TestCaseError> {
        let present = self.present();
        let rested = |at: &Ipv4Addr| self.freed.get(at).is_none_or(|freed| self.now >= *freed + self.rest);
        let free = (0..ADDRESSES).map(address).find(|at| present.iter().all(|vm| vm.address != *at) && rested(at));
        let (Some(at), true) = (free, present.iter().all(|vm| vm.name != name(n))) else { return Ok(()) };
        self.ids += 1;
        let id = VmId(uuid::Uuid::from_u128(self.ids));
        for (told, whom, until) in &self.told {
            prop_assert!(*told != at || *whom == id || *until <= self.now, "{at} is kept for another until {until:?}");
        }
        self.begin(NamedVm { id, name: name(n), address: at, host: "h".parse().unwrap(), image: "bb".into() });
        Ok(())
    }

    fn delete(&mut self, n: u8) {
        let present = self.present();
        let Some(vm) = present.get(usize::from(n) % present.len().max(1)) else { return };
        self.end(vm.id);
        self.freed.insert(vm.address, self.now);
    }

    fn rename(&mut self, n: u8, to: u8) {
        let present = self.present();
        let Some(vm) = present.get(usize::from(n) % present.len().max(1)) else { return };
        if present.iter().all(|other| other.name != name(to)) {
            self.end(vm.id);
            self.begin(NamedVm { name: name(to), ..vm.clone() });
        }
    }

    fn reply(&self, vms: Vec<NamedVm>, more: bool) -> Names {
        let rest_ms = u64::try_from(self.rest.as_millis()).unwrap();
        Names { vms, more, domain: "warren".into(), networks: vec!["10.77.0.0/16".parse().unwrap()], rest_ms }
    }

    fn page(&self, after: Option<VmId>) -> Names {
        let mut vms = self.present();
        vms.retain(|vm| after.is_none_or(|after| vm.id > after));
        let more = vms.len() > PAGE;
        vms.truncate(PAGE);
        self.reply(vms, more)
    }

    fn resolve(&self, key: &Key) -> Names {
        self.reply(self.present().into_iter().filter(|vm| has(vm, key)).collect(), false)
    }

    /// Whether that was so at some moment from `since` to now.
    fn was(&self, since: Moment, so: impl Fn(&NamedVm) -> bool) -> bool {
        self.spans.iter().any(|span| so(&span.vm) && span.to.is_none_or(|to| to >= since))
    }

    /// Whether nobody had the key at some moment from `since` to now.
    fn was_free(&self, since: Moment, key: &Key) -> bool {
        let holders: Vec<_> = self.spans.iter().filter(|span| has(&span.vm, key)).collect();
        let held = |at: Moment| holders.iter().any(|s| s.from <= at && s.to.is_none_or(|to| at < to));
        !held(since) || holders.iter().any(|s| s.to.is_some_and(|to| to >= since && !held(to)))
    }
}

fn has(vm: &NamedVm, key: &Key) -> bool {
    match key {
        Key::Vm(id) => vm.id == *id,
        Key::Name(name) => vm.name == *name,
        Key::Address(address) => vm.address == *address,
    }
}

#[derive(Clone, Debug)]
enum Act {
    Create(u8),
    Delete(u8),
    Rename(u8, u8),
    Pass(u64),
    /// A page is asked for; the truth is read at once or when the reply comes, that much later.
    Page(bool, u64),
    Ask(Key, bool, u64),
    Look(Key),
    Settle,
}

fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        (0u8..3).prop_map(|n| Key::Name(name(n))),
        (0..ADDRESSES).prop_map(|n| Key::Address(address(n))),
        (1u128..12).prop_map(|n| Key::Vm(VmId(uuid::Uuid::from_u128(n)))),
    ]
}

fn any_act() -> impl Strategy<Value = Act> {
    let wait = 0u64..1500;
    prop_oneof![
        2 => any::<u8>().prop_map(Act::Create),
        2 => any::<u8>().prop_map(Act::Delete),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(n, to)| Act::Rename(n, to)),
        3 => (0u64..30_000).prop_map(Act::Pass),
        1 => (any::<bool>(), wait.clone()).prop_map(|(early, wait)| Act::Page(early, wait)),
        3 => (any_key(), any::<bool>(), wait).prop_map(|(key, early, wait)| Act::Ask(key, early, wait)),
        6 => any_key().prop_map(Act::Look),
        1 => Just(Act::Settle),
    ]
}

struct Model {
    lab: Lab,
    zone: Zone,
    after: Option<VmId>,
}

impl Model {
    /// A question to the lab, whose truth is read at once or at the end, and the reply.
    fn asked(&mut self, early: bool, wait: u64, read: impl Fn(&Lab) -> Names) -> (Names, Moment) {
        let asked = self.lab.now;
        let before = read(&self.lab);
        self.lab.now += Duration::from_millis(wait);
        (if early { before } else { read(&self.lab) }, asked)
    }

    fn look(&mut self, key: &Key) -> Result<(), TestCaseError> {
        let (now, times) = (self.lab.now, self.zone.times());
        match self.zone.find(key, now) {
            Known::Here(vm) => {
                prop_assert!(has(&vm, key));
                prop_assert!(self.lab.was(now.saturating_sub(times.trust), |truth| *truth == vm), "{vm:?} is too old");
                self.lab.told.push((vm.address, vm.id, now + times.ttl));
            }
            Known::Absent => prop_assert!(self.lab.was_free(now.saturating_sub(ABSENT), key), "{key:?} was there"),
            Known::Unsure => {}
        }
        Ok(())
    }

    fn act(&mut self, act: &Act) -> Result<(), TestCaseError> {
        match act {
            Act::Create(n) => self.lab.create(*n)?,
            Act::Delete(n) => self.lab.delete(*n),
            Act::Rename(n, to) => self.lab.rename(*n, *to),
            Act::Pass(ms) => self.lab.now += Duration::from_millis(*ms),
            Act::Page(early, wait) => {
                let after = self.after;
                let (reply, asked) = self.asked(*early, *wait, |lab| lab.page(after));
                self.zone.page(after, &reply, asked);
                self.after = reply.vms.last().filter(|_| reply.more).map(|vm| vm.id);
            }
            Act::Ask(key, early, wait) => {
                let (reply, asked) = self.asked(*early, *wait, |lab| lab.resolve(key));
                self.zone.resolved([key], &reply, asked);
            }
            Act::Look(key) => self.look(key)?,
            Act::Settle => self.settle()?,
        }
        Ok(())
    }

    /// After all pages and no change meanwhile, all is known and nothing else is.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        let mut after = None;
        loop {
            let (reply, asked) = self.asked(true, 0, |lab| lab.page(after));
            self.zone.page(after, &reply, asked);
            after = reply.vms.last().map(|vm| vm.id);
            if !reply.more {
                break;
            }
        }
        let present = self.lab.present();
        prop_assert_eq!(self.zone.len(), present.len());
        for vm in present {
            for key in [Key::Vm(vm.id), Key::Name(vm.name.clone()), Key::Address(vm.address)] {
                let known = self.zone.find(&key, self.lab.now);
                let expected = if self.zone.times().trust.is_zero() { Known::Unsure } else { Known::Here(vm.clone()) };
                prop_assert_eq!(known, expected);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn no_answer_outlives_its_truth(
        rest in prop_oneof![Just(0), Just(1), Just(7), Just(30), Just(60)], acts in prop::collection::vec(any_act(), 1..120)
    ) {
        let rest = Duration::from_secs(rest);
        let lab = Lab { now: Duration::from_secs(1000), rest, spans: vec![], freed: HashMap::new(), ids: 0, told: vec![] };
        let mut model = Model { lab, zone: Zone::default(), after: None };
        for act in &acts {
            model.act(act)?;
        }
    }
}

#[test]
fn trust_and_ttl_are_well_below_the_rest() {
    let seconds = |rest| {
        let Times { trust, ttl } = Times::of(Duration::from_secs(rest));
        (trust.as_secs_f64(), ttl.as_secs())
    };
    assert_eq!(seconds(60), (40.0, 5));
    assert_eq!(seconds(8), (4.0, 2));
    assert_eq!(seconds(2), (1.5, 0));
    assert_eq!(seconds(0), (0.0, 0), "then everything is asked each time");
}

#[test]
fn a_flood_of_absent_names_costs_no_memory() {
    let mut zone = Zone::new("warren", "10.77.0.0/16".parse().unwrap());
    let keys: Vec<_> = (0..10_000).map(|n| Key::Name(format!("n{n}").parse().unwrap())).collect();
    let reply = Names { vms: vec![], more: false, domain: "warren".into(), networks: vec![], rest_ms: 60_000 };
    zone.resolved(&keys, &reply, Duration::from_secs(10));
    assert_eq!(zone.absent.len(), ABSENT_MAX);
    zone.resolved(&keys[..1], &reply, Duration::from_secs(12));
    assert_eq!(zone.absent.len(), 1);
}
