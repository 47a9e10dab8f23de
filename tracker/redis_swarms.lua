-- SPDX-License-Identifier: GPL-3.0-or-later
-- One operation on one swarm in Redis, by the rules of tracker/swarms.py.
--
-- KEYS[1] is a swarm's name; all its keys begin with it, so that they share a slot of a cluster:
--   :0 :1 :2 :3   hashes of peers: seeds of IPv4, of IPv6, leechers of IPv4, of IPv6.
--                 address and port -> time (4 bytes), flags (1), peer id (20)
--   :p            the set of leechers that are partial seeds
--   :n0 ... :n3   network -> the peers of that network, only for pools that had 32 peers once
--   :d            how often it was downloaded
-- A key goes by itself when nobody who is in it was heard of for as long as a peer is kept.

local base = KEYS[1]
local call = redis.call
local WIDTH = {[0] = 6, 18, 6, 18}
local NETWORK = {[0] = 4, 8, 4, 8}
local RECORD = 25
local FEW = 32
local MOST = 4294967295

local sizes = {}
for place = 0, 3 do sizes[place] = call('HLEN', base .. ':' .. place) end
local before = {[0] = sizes[0], sizes[1], sizes[2], sizes[3]}

local function everybody() return sizes[0] + sizes[1] + sizes[2] + sizes[3] end

local function downloads()
  local count = tonumber(call('GET', base .. ':d') or '0')
  if not count or count ~= count or count < 0 or count > MOST then return 0 end
  return math.floor(count)
end

local function is_partial(record) return (string.byte(record, 5) or 0) % 2 == 1 end

local function split(place, key)
  return key:sub(1, NETWORK[place]), key:sub(NETWORK[place] + 1)
end

-- What is in a network; nothing of it is believed when it can't have been written here.
local function in_network(place, network)
  local rests = call('HGET', base .. ':n' .. place, network) or ''
  return #rests % (WIDTH[place] - NETWORK[place]) == 0 and rests or ''
end

local function add_to_network(place, key)
  local network, rest = split(place, key)
  call('HSET', base .. ':n' .. place, network, in_network(place, network) .. rest)
end

local function remove_from_network(place, key)
  local network, rest = split(place, key)
  local index = base .. ':n' .. place
  local rests, kept = in_network(place, network), {}
  if rests == '' then return end
  for at = 1, #rests, #rest do
    local other = rests:sub(at, at + #rest - 1)
    if other ~= rest then kept[#kept + 1] = other end
  end
  if #kept > 0 then
    call('HSET', index, network, table.concat(kept))
  else
    call('HDEL', index, network)
  end
end

local function remove(place, key, record)
  if call('HDEL', base .. ':' .. place, key) == 0 then return end
  sizes[place] = sizes[place] - 1
  if place >= 2 and is_partial(record) then call('SREM', base .. ':p', key) end
  remove_from_network(place, key)
end

-- Drop the longest unheard peers of a network until it has fewer than allowed.
local function make_room(place, key, allowed)
  local index = base .. ':n' .. place
  if call('EXISTS', index) == 0 then
    if sizes[place] < math.min(allowed, FEW) then return false end
    for _, other in ipairs(call('HKEYS', base .. ':' .. place)) do
      if #other == WIDTH[place] then add_to_network(place, other) end
    end
  end
  local network, rest = split(place, key)
  local rests = in_network(place, network)
  local present = {}
  for at = 1, #rests, #rest do
    local other = network .. rests:sub(at, at + #rest - 1)
    local record = call('HGET', base .. ':' .. place, other)
    if record and #record == RECORD then
      present[#present + 1] = {record:sub(1, 4), other, record}
    else
      remove_from_network(place, other)
    end
  end
  if #present >= allowed then
    table.sort(present, function(one, other)
      if one[1] ~= other[1] then return one[1] < other[1] end
      return one[2] < other[2]
    end)
    for number = 1, #present - allowed + 1 do
      remove(place, present[number][2], present[number][3])
    end
  end
  return true
end

-- The counts, and by how much each pool and the number of swarms changed.
local function summary(existed)
  local total, changes = everybody(), {}
  for place = 0, 3 do changes[place] = sizes[place] - before[place] end
  return struct.pack('>I4I4I4I4i4i4i4i4i4',
    sizes[0] + sizes[1], sizes[2] + sizes[3], downloads(), call('SCARD', base .. ':p'),
    changes[0], changes[1], changes[2], changes[3],
    (total > 0 and 1 or 0) - (existed and 1 or 0))
end

local function forget_if_empty(kept)
  if kept == 0 and everybody() == 0 then call('DEL', base .. ':d') end
end

local NOBODY = struct.pack('>I4I4', 0, 0)

-- Keys that were found, and the peer ids behind them if there are any, without a key.
local function sound(found, place, ids, without)
  local keys, names = {}, {}
  for number = 1, #found, ids and 2 or 1 do
    local key = found[number]
    if #key == WIDTH[place] and key ~= without then
      keys[#keys + 1] = key
      if ids then
        local id = found[number + 1]:sub(6, RECORD)
        names[#names + 1] = id .. string.rep('\0', 20 - #id)
      end
    end
  end
  return keys, names
end

local function choose(order, limit, random, ids, own_place, own_key)
  local amounts, peers, names = {[0] = 0, 0}, {[0] = '', ''}, {[0] = '', ''}
  for at = 1, #order do
    local place = tonumber(order:sub(at, at))
    if limit > 0 and sizes[place] > 0 then
      local pool, mine = base .. ':' .. place, place == own_place
      local wanted = mine and limit + 1 or limit
      local keys, identities
      if ids then
        keys = call('HRANDFIELD', pool, wanted, 'WITHVALUES')
      elseif sizes[place] <= wanted then
        keys = call('HKEYS', pool)
      else
        keys = call('HRANDFIELD', pool, wanted)
      end
      local text = not (ids or mine) and table.concat(keys)
      -- All at once, unless they have to be looked at one by one.
      if not text or #text ~= #keys * WIDTH[place] then
        keys, identities = sound(keys, place, ids, mine and own_key)
        if #keys > limit then
          -- The asker wasn't among them: any of the others has to go, each as likely.
          local gone = random % #keys + 1
          table.remove(keys, gone)
          if ids then table.remove(identities, gone) end
        end
        text = table.concat(keys)
      end
      limit = limit - #keys
      local family = place % 2
      amounts[family] = amounts[family] + #keys
      peers[family] = peers[family] .. text
      if ids then names[family] = names[family] .. table.concat(identities) end
    end
  end
  return struct.pack('>I4I4', amounts[0], amounts[1])
    .. peers[0] .. peers[1] .. names[0] .. names[1]
end

local operations = {}

-- numbers, order of pools, peer id, address and port
function operations.announce()
  local now, place, event, ids, may_begin, may_grow, numwant, random, swarm_peers, address_ports,
    seed_ttl, leecher_ttl, kept = struct.unpack('>I4BBBBBI4I4I4I4I4I4I4', ARGV[2])
  local order, peer_id, key = ARGV[3], ARGV[4], ARGV[5]
  local existed, stops = everybody() > 0, event == 2
  if not existed and (stops or (may_begin == 0 and not (kept > 0 and downloads() > 0))) then
    if stops and kept > 0 then return summary(false) .. NOBODY end
    return string.rep('\0', 44)  -- no counts, no changes, nobody
  end
  local pool, ttl = base .. ':' .. place, place < 2 and seed_ttl or leecher_ttl
  local record, was = call('HGET', pool, key), place
  if not record then
    was = (place + 2) % 4
    record = call('HGET', base .. ':' .. was, key)
  end
  local known = record and #record == RECORD
  if record and (stops or was ~= place or not known) then remove(was, key, record) end
  if stops then
    local left = summary(existed)
    forget_if_empty(kept)
    return left .. NOBODY
  end
  local here = known and was == place
  local partial = event == 3 and place >= 2
  local counted = known and string.byte(record, 5) >= 2
  if event == 1 and not (known and was < 2) and not counted then
    counted = true
    call('SET', base .. ':d', downloads() + 1, 'EX', kept > 0 and kept or seed_ttl)
  end
  local peers = choose(order, numwant, random, ids == 1, here and place, key)
  local room = here
  if not here then
    local indexed = make_room(place, key, address_ports)
    room = (may_grow == 1 or known) and everybody() < swarm_peers
    if room then
      sizes[place] = sizes[place] + 1
      if indexed then add_to_network(place, key) end
    end
  end
  if room then
    local flags = (partial and 1 or 0) + (counted and 2 or 0)
    call('HSET', pool, key, struct.pack('>I4B', now, flags) .. peer_id)
    call('EXPIRE', pool, ttl)
    if sizes[place] >= FEW or sizes[place] >= address_ports then
      call('EXPIRE', base .. ':n' .. place, ttl)
    end
    if partial then
      call('SADD', base .. ':p', key)
      call('EXPIRE', base .. ':p', leecher_ttl)
    elseif here and place >= 2 and is_partial(record) then
      call('SREM', base .. ':p', key)
    end
  end
  return summary(existed) .. peers
end

function operations.counts() return summary(everybody() > 0) end

-- how many peers of a pool at most
function operations.sample()
  local limit, parts = tonumber(ARGV[2]), {}
  for place = 0, 3 do
    local keys = sizes[place] == 0 and {} or call('HRANDFIELD', base .. ':' .. place, limit)
    local sound = {}
    for _, key in ipairs(keys) do
      if #key == WIDTH[place] then sound[#sound + 1] = key end
    end
    parts[#parts + 1] = struct.pack('>I4I4', sizes[place], #sound) .. table.concat(sound)
  end
  return summary(everybody() > 0) .. table.concat(parts)
end

-- place, time before which a peer is silent, cursor, how many to look at, whether downloads are kept
function operations.sweep()
  local place, oldest, existed = tonumber(ARGV[2]), tonumber(ARGV[3]), everybody() > 0
  local found = call('HSCAN', base .. ':' .. place, ARGV[4], 'COUNT', ARGV[5])
  for at = 1, #found[2], 2 do
    local key, record = found[2][at], found[2][at + 1]
    if #key ~= WIDTH[place] or #record ~= RECORD or struct.unpack('>I4', record) < oldest then
      remove(place, key, record)
    end
  end
  forget_if_empty(tonumber(ARGV[6]))
  local first = 1
  for lower = 0, place - 1 do
    if sizes[lower] > 0 then first = 0 end
  end
  return {found[1], summary(existed), sizes[place] > 0 and first or 0, sizes[place]}
end

-- place, whether downloads are kept, peers
function operations.forget()
  local place, existed = tonumber(ARGV[2]), everybody() > 0
  for at = 4, #ARGV do
    local record = call('HGET', base .. ':' .. place, ARGV[at])
    if record then remove(place, ARGV[at], record) end
  end
  forget_if_empty(tonumber(ARGV[3]))
  return summary(existed)
end

-- number of downloads, seconds that it is kept
function operations.restore()
  local count = math.max(downloads(), tonumber(ARGV[2]))
  call('SET', base .. ':d', count, 'EX', ARGV[3])
  return summary(everybody() > 0)
end

return operations[ARGV[1]]()
