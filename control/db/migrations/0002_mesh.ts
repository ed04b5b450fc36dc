import type { Knex } from "knex";

// No foreign keys: rows live for hours, are written while somebody waits for a session, and one that names what is
// gone is void by that alone.
const MESH = `
-- Where connected agents are; one row per agent, of its newest connection.
create table mesh_nodes (
  agent_id uuid primary key,
  -- the coordinator it is connected to: a process, new with each start
  replica_id uuid not null,
  connection_id uuid not null,
  node_key text not null,
  home_region bigint not null,
  issued_at timestamptz not null,
  expires_at timestamptz not null,
  -- the signed node record
  statement bytea not null
);
create index mesh_nodes_expires on mesh_nodes (expires_at);

-- Permissions that were given out. A live session may go on with one that has expired, hence kept for a while longer.
create table mesh_grants (
  id uuid primary key,
  user_id uuid not null,
  agent_id uuid not null,
  -- api_keys.id
  token_id text not null,
  -- of the client
  node_key text not null,
  issued_at timestamptz not null,
  expires_at timestamptz not null,
  revoked_at timestamptz
);
create index mesh_grants_user on mesh_grants (user_id, expires_at);
create index mesh_grants_agent on mesh_grants (agent_id);
create index mesh_grants_expires on mesh_grants (expires_at);

-- A key is published before it signs and verified after it has ceased to.
alter table signing_keys add column active_at timestamptz not null default now();
update signing_keys set active_at = created_at;
`;

// A trigger, so that no way to delete a key can forget it: a statement typed into psql ends sessions too.
const KEYS = `
create function announce_api_key_deleted() returns trigger language plpgsql as $$
begin
  perform pg_notify('api_key', old.user_id::text);
  return null;
end $$;
create trigger api_keys_deleted after delete on api_keys
  for each row execute function announce_api_key_deleted();
`;

export async function mesh(knex: Knex): Promise<void> {
  for (const sql of [MESH, KEYS]) await knex.raw(sql);
}
