//! The **order** in which a lab comes up: who waits for whom, by place in a list. Always without a circle.

use std::collections::HashMap;

use contract::{ApiError, VmName};

use super::Wanted;

/// For each VM the places of those it waits for.
pub type After = Vec<Vec<usize>>;

/// Who waits for whom.
///
/// # Errors
/// `invalid_argument`: a name that is none of these VMs', or a circle, which is named.
pub fn after(wanted: &[Wanted]) -> Result<After, ApiError> {
    let places: HashMap<&VmName, usize> = wanted.iter().enumerate().map(|(n, vm)| (&vm.create.name, n)).collect();
    let place = |vm: &Wanted, name: &VmName| {
        places.get(name).copied().ok_or_else(|| {
            ApiError::invalid_argument(format!(
                "VM {} is to come after {name}, which the lab does not have",
                vm.create.name
            ))
            .hint("`after` names VMs of the same lab")
        })
    };
    let after: After = wanted
        .iter()
        .map(|vm| vm.after.iter().map(|name| place(vm, name)).collect::<Result<_, _>>())
        .collect::<Result<_, _>>()?;
    if let Some(circle) = circle(&after) {
        let names: Vec<_> = circle.iter().map(|&n| wanted[n].create.name.as_str()).collect();
        let message = format!("VMs of the lab wait for each other: {}", names.join(" → "));
        return Err(ApiError::invalid_argument(message).hint("take one of these out of `after`"));
    }
    Ok(after)
}

/// A circle of VMs each of which waits for the next, its first again at its end.
fn circle(after: &After) -> Option<Vec<usize>> {
    // Per VM how many of its `after` were walked; one that is on the path is not done yet.
    let (mut walked, mut done) = (vec![0; after.len()], vec![false; after.len()]);
    for start in 0..after.len() {
        let mut path = if done[start] { Vec::new() } else { vec![start] };
        while let Some(&at) = path.last() {
            let Some(&next) = after[at].get(walked[at]) else {
                done[at] = true;
                path.pop();
                continue;
            };
            walked[at] += 1;
            if let Some(first) = path.iter().position(|&n| n == next) {
                return Some(path[first..].iter().copied().chain([next]).collect());
            }
            if !done[next] {
                path.push(next);
            }
        }
    }
    None
}

/// For each VM its level: 1 for those that wait for nobody, one more than the last it waits for otherwise.
pub fn levels(after: &After) -> Vec<u32> {
    let mut levels = vec![1; after.len()];
    // Each round settles one more level; without a circle there are no more levels than VMs.
    for _ in 0..after.len() {
        for (n, waits) in after.iter().enumerate() {
            levels[n] = waits.iter().map(|&m| levels[m] + 1).max().unwrap_or(1);
        }
    }
    levels
}

/// The same order backwards: for each VM the places of those that wait for it.
pub fn reversed(after: &After) -> After {
    let mut reversed = vec![Vec::new(); after.len()];
    for (n, waits) in after.iter().enumerate() {
        for &m in waits {
            reversed[m].push(n);
        }
    }
    reversed
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::vm::CreateRequest;
    use proptest::prelude::*;

    fn lab(vms: &[(&str, &[&str])]) -> Vec<Wanted> {
        let name = |text: &str| text.parse::<VmName>().unwrap();
        let one = |(vm, after): &(&str, &[&str])| Wanted {
            create: CreateRequest::new(name(vm), "debian"),
            after: after.iter().map(|text| name(text)).collect(),
        };
        vms.iter().map(one).collect()
    }

    #[test]
    fn a_circle_is_named() {
        let good = lab(&[("lb", &["web"]), ("web", &["db", "cache"]), ("db", &[]), ("cache", &["db"])]);
        assert_eq!(levels(&after(&good).unwrap()), [4, 3, 1, 2]);
        for (wrong, message) in [
            (lab(&[("a", &["a"])]), "a → a"),
            (lab(&[("x", &["b"]), ("a", &["c"]), ("b", &["a"]), ("c", &["b"])]), "b → a → c → b"),
            (lab(&[("a", &["b"])]), "VM a is to come after b, which"),
        ] {
            let error = after(&wrong).unwrap_err();
            assert!(error.message.contains(message), "{}", error.message);
        }
    }

    proptest! {
        /// Either everybody comes one level after all they wait for, forwards and backwards, or the circle that is named is one.
        #[test]
        fn an_order_holds_or_its_circle_is_real(edges in prop::collection::vec((0usize..8, 0usize..8), 0..16)) {
            let mut after: After = vec![Vec::new(); 8];
            for (n, m) in edges {
                after[n].push(m);
            }
            match circle(&after) {
                Some(circle) => {
                    prop_assert!(circle.len() >= 2 && circle.first() == circle.last());
                    prop_assert!(circle.windows(2).all(|pair| after[pair[0]].contains(&pair[1])));
                }
                None => {
                    for order in [after.clone(), reversed(&after)] {
                        let levels = levels(&order);
                        for (n, waits) in order.iter().enumerate() {
                            prop_assert!(waits.iter().all(|&m| levels[m] < levels[n]));
                            prop_assert!(levels[n] == 1 || waits.iter().any(|&m| levels[m] + 1 == levels[n]));
                        }
                    }
                }
            }
        }
    }
}
