//! SQL of the schema `image` (migrations/V0002__image.sql): one file a noun, rows in, parsed types out.

pub mod build_cache;
pub mod build_log;
pub mod child;
pub mod image;
pub mod kernel;
pub mod lookup;
pub mod maker;
pub mod name;
pub mod publication;
pub mod reconciler;
pub mod removal;
pub mod replica;
pub mod stock;
pub mod unnamed;
pub mod usage;
pub mod withdrawal;

use operations::claim_holds_in_txn;
use store::parsed;
