//! A **lab file**: TOML that names VMs, read into the request it stands for. What its fields may hold, the service says; here each
//! key is known or refused with its line.

use std::{ops::Range, path::Path};

use contract::{
    ApiError, LabName, VmName, deadline,
    lab::{LabUpRequest, LabVm, vm_fields},
};
use serde_json::{Map, Value};
use toml::{Spanned, de::DeTable};

/// What stands beside the fields of `warren.vm.create` in a VM's table.
const OWN: [&str; 2] = ["count", "after"];

/// Reads a lab file.
///
/// # Errors
/// It cannot be read, is no TOML, or a key is unknown or missing; with its place.
pub fn read(path: &Path) -> Result<LabUpRequest, ApiError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ApiError::invalid_argument(format!("{} cannot be read: {error}", path.display())))?;
    parse(&text).map_err(|mut error| {
        error.message = format!("{}: {}", path.display(), error.message);
        error
    })
}

/// The request a lab file stands for.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str) -> Result<LabUpRequest, ApiError> {
    let wrong = |error: toml::de::Error| ApiError::invalid_argument(format!("it is no TOML: {error}"));
    // Read twice: once with the places of keys, once as values.
    let places = DeTable::parse(text).map_err(wrong)?;
    let mut table: toml::Table = text.parse().map_err(wrong)?;
    keys(text, places.get_ref(), "", &["lab", "defaults", "vms"])?;
    for (key, value) in places.get_ref() {
        let fields = || vm_fields().iter().map(String::as_str);
        match (key.get_ref().as_ref(), value.get_ref().as_table()) {
            ("defaults", Some(defaults)) => keys(text, defaults, "defaults.", &fields().collect::<Vec<_>>())?,
            ("vms", Some(vms)) => {
                for (name, vm) in vms {
                    let place = format!("vms.{}", name.get_ref());
                    let Some(vm) = vm.get_ref().as_table() else {
                        return Err(at(text, name.span(), &format!("`{place}` is no table")));
                    };
                    name.get_ref().parse::<VmName>().map_err(|error| at(text, name.span(), &error.to_string()))?;
                    keys(text, vm, &format!("{place}."), &fields().chain(OWN).collect::<Vec<_>>())?;
                }
            }
            ("defaults" | "vms", None) => {
                return Err(at(text, key.span(), &format!("`{}` is no table", key.get_ref())));
            }
            _ => {}
        }
    }
    let lab = match table.remove("lab") {
        Some(toml::Value::String(name)) => {
            name.parse::<LabName>().map_err(|error| ApiError::invalid_argument(error.to_string()))?
        }
        Some(_) => return Err(ApiError::invalid_argument("`lab` is no text")),
        None => {
            return Err(ApiError::invalid_argument("the lab has no name").hint("begin the file with lab = \"NAME\""));
        }
    };
    let defaults = object(table.remove("defaults"))?;
    let vms = object(table.remove("vms"))?;
    Ok(LabUpRequest {
        lab,
        defaults,
        vms: vms.into_iter().map(|(name, vm)| one(&name, vm)).collect::<Result<_, _>>()?,
        ssh_keys: Vec::new(),
        dry_run: false,
        wait: false,
        timeout_ms: deadline::WAIT_DEFAULT_MS,
    })
}

fn object(value: Option<toml::Value>) -> Result<Map<String, Value>, ApiError> {
    match value.map(serde_json::to_value).transpose() {
        Ok(Some(Value::Object(fields))) => Ok(fields),
        Ok(None) => Ok(Map::new()),
        other => Err(ApiError::invalid_argument(format!("a table of the file is none: {other:?}"))),
    }
}

fn one(name: &str, vm: Value) -> Result<LabVm, ApiError> {
    let Value::Object(mut fields) = vm else {
        return Err(ApiError::invalid_argument(format!("`vms.{name}` is no table")));
    };
    fields.insert("name".to_owned(), name.into());
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| ApiError::invalid_argument(format!("`vms.{name}`: {error}")))
}

fn keys(text: &str, table: &DeTable<'_>, place: &str, known: &[&str]) -> Result<(), ApiError> {
    let unknown = |key: &&Spanned<_>| -> bool {
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        !known.contains(&key.as_ref())
    };
    match table.keys().find(unknown) {
        None => Ok(()),
        Some(key) => Err(at(text, key.span(), &format!("there is no key `{place}{}`", key.get_ref()))
            .hint(format!("known are {}", known.join(", ")))),
    }
}

/// A refusal with the line it is about.
fn at(text: &str, span: Range<usize>, why: &str) -> ApiError {
    let line = text.get(..span.start).unwrap_or_default().matches('\n').count() + 1;
    ApiError::invalid_argument(format!("line {line}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "lab = \"shop\"\n[defaults]\nimage = \"debian\"\n[vms.db]\nmemory = \"1G\"\n[vms.web]\ncount = 3\n\
        after = [\"db\"]\nports = [\"8080:80\"]\n";

    #[test]
    fn a_file_is_the_request_it_stands_for() {
        let request = parse(FILE).unwrap();
        assert_eq!((request.lab.as_str(), request.defaults["image"].as_str()), ("shop", Some("debian")));
        let names: Vec<_> = request.vms.iter().map(|vm| vm.name.as_str()).collect();
        assert_eq!(names, ["db", "web"]);
        let web = &request.vms[1];
        assert_eq!((web.count, web.after.len(), web.create.len()), (Some(3), 1, 1));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_place() {
        for (wrong, message) in [
            (FILE.replace("memory", "memroy"), "line 5: there is no key `vms.db.memroy`"),
            (FILE.replace("image", "imgae"), "line 3: there is no key `defaults.imgae`"),
            (FILE.replace("[defaults]", "[default]"), "line 2: there is no key `default`"),
            (FILE.replace("[vms.db]", "[vms.DB]"), "line 4: VM name \"DB\""),
            (FILE.replace("count = 3", "count = \"x\""), "`vms.web`: "),
            (FILE.replace("lab = \"shop\"\n", ""), "the lab has no name"),
            (FILE.replace("\"shop\"", "\"../shop\""), "lab name \"../shop\""),
            (FILE.replace("\"shop\"", "3"), "`lab` is no text"),
            ("lab = \"x\"\nvms = 3\n".to_owned(), "line 2: `vms` is no table"),
            ("lab = \"x\"\n[vms]\ndb = 3\n".to_owned(), "line 3: `vms.db` is no table"),
            (FILE.replace("[vms.db]", "[vms.db"), "it is no TOML: "),
        ] {
            let error = parse(&wrong).unwrap_err();
            assert!(error.message.contains(message), "{wrong}: {}", error.message);
        }
    }
}
